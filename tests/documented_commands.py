"""Every shell command of README and docs, and what is done about it: `COMMANDS`.

A command is what stands in a block that is marked as `bash`. One that changes in the documentation has to change here,
too. `tests/unit/docs/test_commands.py` runs those that need nothing, `tests/e2e/test_application.py` those that need an
application.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK: Final = re.compile(r"^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Here:
    """Run as it stands, with what makes it short behind it."""

    shorter: str = ""


@dataclass(frozen=True)
class Live:
    """Run at the application that the end-to-end tests have started, in the order in which they stand here."""


@dataclass(frozen=True)
class ByTest:
    """A test runs the same, as its fixture or by another name: `file::test`."""

    by: str


@dataclass(frozen=True)
class NotRun:
    """Needs something that is not there where the tests run."""

    because: str


Treatment = Here | Live | ByTest | NotRun

_ROOT: Final = NotRun("needs root, and changes the machine")
_DOCKER: Final = NotRun("needs Docker; tests/unit/cluster/test_docker.py checks the files")
_KUBERNETES: Final = NotRun("needs a Kubernetes cluster; tests/unit/cluster/test_kubernetes.py checks the files")
_CLUSTER: Final = NotRun("needs a Ray cluster elsewhere; tests/unit/cluster/test_serve_configs.py checks the files")
_NETWORK: Final = NotRun("asks the network, for newer packages or known faults")
_OTHERS: Final = NotRun("a program of others, which the lock has not")
_BENCH: Final = ByTest("tests/unit/loadtests/test_coserving_bench.py::test_all_runs_are_made_interleaved")
_LOAD: Final = ByTest("tests/integration/loadtests/test_locust_load.py::test_a_whole_load_test")
_DEMO: Final = ByTest("tests/integration/loadtests/test_demo.py::test_a_whole_demonstration")
_CHAOS: Final = ByTest("tests/chaos/test_chaos.py::test_contracts_hold_while_things_go_wrong")
_LONG: Final = NotRun("takes the machine for ten minutes or more")
_SOAK: Final = ByTest(
    "tests/integration/loadtests/test_soak_run.py::test_everything_is_sampled_under_a_load_that_changes"
)
_FUZZ: Final = ByTest("tests/integration/fuzz/test_surfaces.py::test_the_command")
_UP: Final = ByTest("tests/e2e/test_application.py::test_everything_killed_in_the_middle_and_nothing_lost")
_KEYS: Final = ByTest("tests/integration/jobs/test_key_commands.py::test_a_key_is_made_shown_and_revoked")
_LOCUST: Final = "locust -f loadtests/front/locustfile.py --host http://127.0.0.1:8000"

COMMANDS: Final[dict[str, Treatment]] = {
    # Set-up and the programs of make.
    "make setup": ByTest("tests/unit/setup/test_install.py::test_set_up_does_what_has_changed"),
    "make demo": _DEMO,
    "make test": NotRun("it is what runs these tests"),
    "make lint": NotRun("looks at the code as it is, and is run before the tests"),
    "make baselines": ByTest("tests/unit/simulator/test_baselines.py::test_figures_are_those_that_are_kept"),
    "make lock": _NETWORK,
    "make audit": _NETWORK,
    "python -m loadtests.queue_cost --help": Here(),
    "make fuzz": _FUZZ,
    'make fuzz ARGS="--surface grpc --inputs 1000 --seed 7"': _FUZZ,
    "make docs": ByTest("tests/unit/docs/test_site.py::test_every_page_is_built"),
    "make bench": _BENCH,
    "make bench W=all REPEATS=3": _BENCH,
    "make bench W=chat REPEATS=1": _BENCH,
    "make bench TRACES=folder": _BENCH,
    'make bench ARGS="--ablate all --relaxed --frontier --tightness 2"': _BENCH,
    "python -m loadtests.coserve --help": Here(),
    "make loadtest": _LOAD,
    "make loadtest TRACES=folder": _LOAD,
    'make loadtest ARGS="--arrivals gamma --cv 4 --rate 0.5"': _LOAD,
    "python -m loadtests.loadtest --help": Here(),
    # Faults and soaks.
    "make chaos": _CHAOS,
    "make chaos ENGINE=real": _LONG,
    "python -m loadtests.chaos --seed 7 --faults 20": _CHAOS,
    "make soak": _SOAK,
    "make soak ENGINE=real": _SOAK,
    "python -m loadtests.soak --minutes 10": _SOAK,
    # An application.
    "conserve up": _UP,
    "conserve down": _UP,
    "conserve doctor": Live(),
    'conserve chat "What is the capital of France?"': Live(),
    "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{ "
    '"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Say hello."}], '
    '"stream": true}\'': Live(),
    "cat > my.jsonl <<'END'": Live(),
    "conserve batch submit my.jsonl --watch": Live(),
    "conserve batch results BATCH --follow": Live(),
    "curl -N 'http://127.0.0.1:8000/v1/batches/BATCH/results?follow=true'": Live(),
    "conserve status": Live(),
    "conserve keys create ci --tenant research --scope online --expires 30d --requests-per-minute 600 "
    "--tokens-per-minute 200000": _KEYS,
    "conserve keys list": _KEYS,
    "conserve keys revoke ci": _KEYS,
    "python docs/examples/grpc_client.py 127.0.0.1:9000": Live(),
    f"{_LOCUST} --headless --only-summary --online-s 60 --rate 1 --arrivals gamma --cv 3 --batches 2 "
    "--batch-requests 50 --summary out/summary.json": _LOAD,
    _LOCUST: NotRun("serves its own page until it is stopped"),
    "python -m loadtests.front_cost": _LONG,
    "python -m loadtests.vllm_cli bench serve --backend openai-chat --base-url http://127.0.0.1:8000 "
    "--endpoint /v1/chat/completions --model smollm2-135m-instruct --tokenizer $MODEL --dataset-name random "
    "--random-input-len 64 --random-output-len 16 --num-prompts 16 --request-rate 2": Live(),
    "lm_eval --model local-completions --include_path loadtests/clients --tasks capitals,capitals_written --model_args "
    "model=smollm2-135m-instruct,base_url=http://127.0.0.1:8000/v1/completions,tokenizer=$MODEL,num_concurrent=2,"
    "tokenized_requests=False": _OTHERS,
    "guidellm run --backend kind=openai_http,target=http://127.0.0.1:8000,model=smollm2-135m-instruct "
    "--profile kind=constant,rate=1 --constraint kind=max_requests,count=12 "
    "--tokenizer kind=huggingface_auto,model=$MODEL "
    "--data kind=synthetic_text,prompt_tokens=64,output_tokens=16": _OTHERS,
    "CONSERVE_REPLICAS=2 CONSERVE_HARVEST__MAX_WINDOW=4 conserve config check": Here(),
    "conserve profile": ByTest("tests/unit/cli/test_profile_command.py::test_profile_shows_costs_and_where_they_are"),
    "serve deploy serve_config.yaml": _CLUSTER,
    "conserve up --address http://head:8265": _CLUSTER,
    # Simulations and plans.
    "conserve simulate chat": Here("--duration 5"),
    "conserve simulate pressure --policies conserve,no-checkpoints --profile a100-80g/llama-2-7b --out figures.json": (
        Here("--duration 5")
    ),
    "conserve simulate chat --replicas 8 --rate 20 --incident 60:3:fail --incident 120:3:start": Here(
        "--duration 121 --rate 4"
    ),
    "conserve simulate bursty --trace AzureLLMInferenceTrace_code.csv --ttft-slo-ms 500 --tbt-slo-ms 60": (
        Here("--duration 5")
    ),
    "conserve plan --trace AzureLLMInferenceTrace_conv.csv --trace-scale 4 --profile h100/llama-3.1-8b "
    "--out out/plan": Here("--duration 60"),
    "conserve plan --rate 20 --prompt-tokens 800 --output-tokens 200 --burst-cv 2 --ttft-slo-ms 500 --tbt-slo-ms 60 "
    "--batch-requests 1000000 --batch-prompt-tokens 1000:3000 --batch-output-tokens 200 "
    "--dollars-per-hour 3.5": Here("--duration 60 --rate 3"),
    "conserve compile": ByTest(
        "tests/integration/simulator/test_compiled.py::test_compiled_modules_give_the_same_figures"
    ),
    # Operation.
    "prometheus --config.file cluster/prometheus/prometheus.yml "
    "--storage.tsdb.path /var/lib/conserve-prometheus": ByTest(
        "tests/e2e/test_application.py::test_prometheus_has_an_answer_to_what_every_panel_and_every_rule_asks"
    ),
    "conserve grafana install --url http://grafana:3000 --token glsa_... --prometheus http://prometheus:9090": ByTest(
        "tests/unit/launch/test_grafana.py::test_everything_is_there_after_the_first_time"
    ),
    "useradd --system --home-dir /var/lib/conserve conserve": _ROOT,
    "git clone ... /opt/conserve && cd /opt/conserve": _ROOT,
    "CONSERVE_CACHE=/var/cache/conserve make setup && chown -R conserve: /var/cache/conserve": _ROOT,
    "install -D -m 644 serve_config.yaml /etc/conserve/serve_config.yaml": _ROOT,
    "install -D -m 600 cluster/systemd/conserve.env.example /etc/conserve/conserve.env": _ROOT,
    "install -m 644 cluster/systemd/conserve.service /etc/systemd/system/": _ROOT,
    "systemctl daemon-reload && systemctl enable --now conserve": _ROOT,
    "cd cluster/docker": _DOCKER,
    '(umask 077; echo "REDIS_PASSWORD=$(openssl rand -hex 32)" > .env)': _DOCKER,
    "docker compose up --detach --wait": _DOCKER,
    "docker compose --file compose.yaml --file compose.gpu.yaml up --detach --wait": _DOCKER,
    "kubectl create namespace conserve": _KUBERNETES,
    "cp cluster/kubernetes/secrets.example.yaml cluster/kubernetes/secrets.yaml": _KUBERNETES,
    "kubectl apply --namespace conserve --filename cluster/kubernetes/secrets.yaml": _KUBERNETES,
    "kubectl apply --kustomize cluster/kubernetes": _KUBERNETES,
    "kubectl --namespace conserve get rayservice conserve --watch": _KUBERNETES,
}


@dataclass(frozen=True)
class Block:
    """What stands between two fences of a page."""

    page: Path
    language: str
    text: str


def list_blocks() -> list[Block]:
    """All blocks of all pages."""
    return [
        Block(page, *found.groups()) for page in PAGES for found in _BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]


def list_commands() -> dict[str, str]:
    """Commands as they stand in `COMMANDS` -> as they are to be run, in the order of the pages."""
    found = {}
    for block in list_blocks():
        if block.language == "bash":
            for command in _split(block.text):
                found.setdefault(name_command(command), command)
    return found


def name_command(command: str) -> str:
    """On one line, without where programs are installed; of a here-document its beginning."""
    name = command.partition("\n")[0] if "<<" in command else command.replace("\\\n", " ")
    return " ".join(name.replace(".venv/bin/", "").split())


def _split(text: str) -> Iterator[str]:
    """Commands of a script: lines that belong together, without comments."""
    lines: list[str] = []
    for line in text.splitlines():
        if not lines and (not line.strip() or line.startswith("#")):
            continue
        lines.append(line if lines and "<<" in lines[0] else re.sub(r"\s+# .*$", "", line))
        if _is_whole("\n".join(lines)):
            yield "\n".join(lines)
            lines = []
    assert not lines, f"not a whole command: {lines}"


def _is_whole(text: str) -> bool:
    if text.endswith("\\"):
        return False
    read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False, timeout=60)
    return read.returncode == 0 and not read.stderr  # A here-document without its end is a warning.
