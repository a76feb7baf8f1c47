"""The front as `deployments.app` builds it, over light replicas, in a Ray of its own.

python -m tests.integration.deployments.light_application FOLDER HTTP_PORT GRPC_PORT REPLICAS SETTINGS

SETTINGS are further ones, as JSON.
Runs until its input ends.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import ray
import yaml
from ray import serve
from ray.serve.deployment import Application
from ray.serve.llm.ingress import make_fastapi_ingress

from conserve.config import Settings, load_settings
from deployments.app import build_fastapi_app
from deployments.ingress import ENDPOINTS, ConServeIngress
from deployments.routing_config import find_routing
from tests.integration.deployments.light_replica import LightReplica

MODEL = "light"


def build(settings: Settings, folder: Path, replicas: int) -> Application:
    light = serve.deployment(
        LightReplica,
        num_replicas=replicas,
        max_ongoing_requests=64,
        health_check_period_s=1,
        ray_actor_options={"num_cpus": 0},
        **find_routing(settings.routing),
    ).bind(str(folder), settings)
    front = make_fastapi_ingress(ConServeIngress, endpoint_map=ENDPOINTS, app=build_fastapi_app(Settings()))
    return serve.deployment(front, name="Ingress", max_ongoing_requests=1_000, ray_actor_options={"num_cpus": 0}).bind(
        llm_deployments={MODEL: light}, model_cards={MODEL: None}, settings=settings, controller=None
    )


def find_servicers() -> list[str]:
    """As the configuration that the repository comes with names them."""
    found: list[str] = yaml.safe_load(Path("serve_config.yaml").read_text())["grpc_options"]["grpc_servicer_functions"]
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    http_port, grpc_port, replicas = (int(argument) for argument in sys.argv[2:5])
    further = json.loads(sys.argv[5])
    # Nothing listens there: online requests need no Redis.
    jobs = {"redis_url": f"unix://{folder}/nobody.sock"}
    own = {"model": {"name": MODEL}, "jobs": jobs, "state_dir": str(folder), "routing": {"report_period_ms": 500}}
    own["http"] = {"replica_silence_s": 5}
    settings = load_settings(own | further, {})
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=str(folder / "ray"),
        runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}},
    )
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": http_port},
            grpc_options={"port": grpc_port, "grpc_servicer_functions": find_servicers()},
        )
        serve.run(build(settings, folder, replicas), name="light", route_prefix="/")
        (folder / "ready").touch()
        sys.stdin.read()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
