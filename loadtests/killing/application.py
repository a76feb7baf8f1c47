"""The whole application, with a real model, as a household whose processes are killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from conserve.config import Settings
from conserve.jobs.batch import BatchStatus
from conserve.launch.ports import find_free_ports
from conserve.launch.processes import find_processes
from conserve.launch.record import read_record
from conserve.launch.stack import LocalStack
from conserve.models import DEFAULT_MODEL
from loadtests.killing.client import PatientClient
from loadtests.killing.household import TENANTS, Victim, kill_redis
from loadtests.killing.leftovers import find_left
from loadtests.killing.questions import Answer, Questions, make_id, make_input

CONFIG: Final = Path(__file__).parents[2] / "serve_config.yaml"
ACTORS: Final[dict[Victim, str]] = {
    Victim.REPLICA: "ConServeReplica",
    Victim.CONTROLLER: "Controller",
    Victim.FRONT: "Ingress",
}
"""How the processes of the deployments are called by Ray Serve."""
KINDS: Final = 12
"""Different questions; more of them are these again."""
OUTPUT_TOKENS: Final = 96
END_LIMIT_S: Final = 20.0
LEARN_LIMIT_S: Final = 600.0
LEARN_POLL_S: Final = 0.5


class ModelQuestions:
    """Questions for a model, with the answers that it has given undisturbed.

    Args:
        answers: Of each kind of question.
    """

    def __init__(self, answers: Mapping[int, Answer] | None = None) -> None:
        self._answers = dict(answers or {})

    def make_body(self, name: str, number: int) -> Mapping[str, Any]:
        """The body of a request; greedy and of a known length."""
        content = f"{number % KINDS}. Tell a story of {2 + number % KINDS} animals."
        return {
            "model": DEFAULT_MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": OUTPUT_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
        }

    def expect(self, name: str, number: int) -> Answer:
        """The answer to it."""
        return self._answers[number % KINDS]


class ApplicationHousehold:
    """The application as `conserve up` starts it.

    Args:
        folder: For its state.
        replicas: How many engines.
        generator: Draws which of them is killed.
    """

    def __init__(self, folder: Path, replicas: int, generator: random.Random) -> None:
        self._state_dir = folder
        self._generator = generator
        environ = {name: value for name, value in os.environ.items() if name != "CONSERVE_STATE_DIR"}
        # In bfloat16 the answers of a small model depend on what is computed beside them.
        environ |= {"CONSERVE_ENGINE__DTYPE": "float32", "CONSERVE_REPLICAS": str(replicas)}
        # No request is given up: whoever holds it when it is killed is not to blame.
        environ |= {"CONSERVE_JOBS__MAX_ATTEMPTS": "100", "CONSERVE_JOBS__SUSPICIONS": "100"}
        environ |= {"CONSERVE_JOBS__LEASE_MS": "5000", "CONSERVE_TENANTS": json.dumps(TENANTS)}
        http_port, grpc_port = find_free_ports(2)
        self._stack = LocalStack(CONFIG, folder, environ, http_port=http_port, grpc_port=grpc_port)

    def start(self) -> None:
        """Starts the application."""
        self._stack.up()

    def stop(self) -> None:
        """Stops it."""
        self._stack.down()

    def check(self) -> None:
        """Serve starts again what ends."""

    def connect(self, key: str) -> PatientClient:
        """A client of it."""
        record = read_record(self._state_dir)
        if record is None:
            raise RuntimeError("the application has not been started")
        return PatientClient(record.base_url, key)

    async def find_left(self) -> list[str]:
        """As `leftovers.find_left`."""
        return await find_left(Settings.model_validate({"state_dir": self._state_dir}))

    async def learn(self, client: PatientClient) -> Questions:
        """Asks every kind of question once."""
        return await learn_answers(client)

    async def kill(self, victim: Victim) -> bool:
        """Kills one; Serve, or the controller where it is Redis, brings it back."""
        if victim is Victim.REDIS:
            return kill_redis(self._state_dir)
        return await asyncio.to_thread(self._kill_actor, ACTORS[victim])

    def _kill_actor(self, name: str) -> bool:
        record = read_record(self._state_dir)
        found = find_processes(record.stack_id) if record is not None else []
        actors = [one for one in found if _is_actor(one, name)]
        if not actors:
            return False
        actor = self._generator.choice(sorted(actors, key=lambda one: one.pid))
        try:
            killed = [actor, *actor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return False
        for process in killed:
            _kill(process)
        psutil.wait_procs(killed, timeout=END_LIMIT_S)
        return True


async def learn_answers(client: PatientClient) -> ModelQuestions:
    """Asks every kind of question once, of an application in which nothing goes wrong.

    Raises:
        RuntimeError: not all were answered.
        TimeoutError: they were not in time.
    """
    batch = await client.submit(make_input(ModelQuestions(), "learnt", KINDS), {"name": ""})
    async with asyncio.timeout(LEARN_LIMIT_S):
        while not (batch := await client.get(batch.id)).status.ended:  # noqa: ASYNC110 - polled
            await asyncio.sleep(LEARN_POLL_S)
    if batch.status is not BatchStatus.COMPLETED:
        raise RuntimeError(f"the questions were not answered: {batch.status}")
    kinds = {make_id("learnt", number): number for number in range(KINDS)}
    answers = {}
    for line in await client.read_lines(batch):
        body = line["response"]["body"]
        usage = body["usage"]
        text = body["choices"][0]["message"]["content"]
        answers[kinds[line["custom_id"]]] = Answer(text, usage["prompt_tokens"], usage["completion_tokens"])
    return ModelQuestions(answers)


def _is_actor(process: psutil.Process, name: str) -> bool:
    try:
        return f"ServeReplica:conserve:{name}" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
