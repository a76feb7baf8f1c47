"""Debian's Prometheus, with configuration and rules of `cluster/prometheus`, beside an application that runs."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from conserve.launch.ports import find_free_ports

FOLDER = Path(__file__).parents[2] / "cluster" / "prometheus"
SCRAPE_PERIOD_S = 2
START_LIMIT_S = 60.0
VARIABLES = {"$__rate_interval": "1m", "$Deployment": ".*", "$Replica": ".*"}


class Prometheus:
    """A running one, that can be asked."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, expr: str) -> list[Any]:
        """The series that an expression gives now; those that are no number are left out."""
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        found = httpx.get(f"{self._url}/api/v1/query", params={"query": expr}, timeout=30).json()
        assert found["status"] == "success", (expr, found)
        return [one for one in found["data"]["result"] if one["value"][1] != "NaN"]

    def wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline_s:
            try:
                if httpx.get(f"{self._url}/-/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise TimeoutError("Prometheus does not get ready")


@contextmanager
def scraping(ray_temp_dir: Path, folder: Path) -> Iterator[Prometheus]:
    """Runs one that scrapes the nodes of a Ray cluster, by the file that its head writes."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), f"{SCRAPE_PERIOD_S}s")
    config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
    (targets,) = config["scrape_configs"][0]["file_sd_configs"]
    targets["files"] = [str(ray_temp_dir / Path(targets["files"][0]).name)]
    config_path = folder / "prometheus.yml"
    config_path.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{find_free_ports(1)[0]}"
    arguments = [
        f"--config.file={config_path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=log)
    try:
        prometheus = Prometheus(f"http://{address}")
        prometheus.wait_until_ready()
        yield prometheus
    finally:
        process.terminate()
        process.wait(timeout=START_LIMIT_S)


def list_panel_queries() -> dict[str, str]:
    """Queries of all panels, by dashboard and title."""
    found: dict[str, str] = {}
    for path in sorted((FOLDER.parent / "grafana").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                found[f"{path.stem}: {panel['title']}: {target['refId']}"] = target["expr"]
    return found


def list_rule_queries() -> dict[str, str]:
    """Those of recording rules, and what alerts look at: an alert itself has an answer only when something is wrong."""
    found: dict[str, str] = {}
    for name in ("recording_rules.yml", "alert_rules.yml"):
        for group in yaml.safe_load((FOLDER / name).read_text())["groups"]:
            for rule in group["rules"]:
                if "record" in rule:
                    found[rule["record"]] = rule["expr"]
                    continue
                for series in re.findall(r"\b(?:ray_|(?:[a-z_]+:)?conserve_)[a-z0-9_:]+(?:{[^}]*})?", rule["expr"]):
                    found[f"{rule['alert']}: {series}"] = series
    return found
