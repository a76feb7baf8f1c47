"""`python -m deployments.stage_times ADDRESS APPLICATION`: chats sent to a replica past proxy and front.

Each line of its input is the body of a chat request; for each it prints the milliseconds to the first content.
The load tests, which may not import Ray, run it beside the application on the same machine.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import ray
from ray import serve

from deployments.ray_compat import ChatCompletionRequest
from deployments.replica import ConServeReplica

REQUEST_LIMIT_S = 60.0


async def time_first_content(handle: Any, body: dict[str, Any]) -> float:
    """Streams a chat to its end; milliseconds to its first content.

    Raises:
        RuntimeError: none came.
        TimeoutError: it does not end.
    """
    began_s = time.monotonic()
    first_s: float | None = None
    async with asyncio.timeout(REQUEST_LIMIT_S):
        async for chunk in handle.chat.remote(ChatCompletionRequest(**body), None):
            for part in chunk if isinstance(chunk, list) else [chunk]:
                if first_s is None and _has_content(part):
                    first_s = time.monotonic()
    if first_s is None:
        raise RuntimeError("no content came")
    return (first_s - began_s) * 1e3


def _has_content(part: Any) -> bool:
    """Replicas stream server-sent events as text."""
    for line in str(part).splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:]).get("choices", []):
                if choice.get("delta", {}).get("content"):
                    return True
    return False


async def answer_lines(handle: Any) -> None:
    """Answers the lines of the input until it ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(await time_first_content(handle, json.loads(line)), flush=True)


def main() -> None:
    """Joins the cluster."""
    address, application = sys.argv[1:]
    ray.init(address=address, namespace="serve", log_to_driver=False, logging_level="ERROR", configure_logging=False)
    # `ray.serve.llm` names a deployment after its class and its model.
    names = serve.status().applications[application].deployments
    deployment = next(name for name in names if name.startswith(f"{ConServeReplica.__name__}:"))
    handle = serve.get_deployment_handle(deployment, app_name=application).options(stream=True)
    print("ready", flush=True)
    asyncio.run(answer_lines(handle))


if __name__ == "__main__":
    main()
