"""Prometheus' own tool reads the configuration and runs the tests of the rules; they ask for metrics that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from conserve.telemetry.catalogue import CATALOGUE
from conserve.telemetry.metric import Kind
from tests.unit.cluster.conftest import REPOSITORY

FOLDER = REPOSITORY / "cluster" / "prometheus"
RULES = ["recording_rules.yml", "alert_rules.yml"]
SERVE_METRICS = {"ray_serve_deployment_replica_starts_total", "ray_serve_deployment_replica_healthy"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not here (Debian: package prometheus)"
)


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_rules() -> list[dict[str, Any]]:
    return [
        rule
        for name in RULES
        for group in yaml.safe_load((FOLDER / name).read_text())["groups"]
        for rule in group["rules"]
    ]


def series_of(expr: str) -> set[str]:
    return {*re.findall(r"\bray_[a-z0-9_]+", expr)}


@needs_promtool
def test_promtool_takes_the_configuration_and_its_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    assert yaml.safe_load((FOLDER / "prometheus.yml").read_text())["rule_files"] == RULES


@needs_promtool
def test_the_rules_do_what_their_tests_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_every_rule_asks_for_metrics_that_there_are() -> None:
    known = set(SERVE_METRICS)
    for metric in CATALOGUE.values():
        name = metric.exported_name
        known |= {f"{name}_bucket"} if metric.kind is Kind.HISTOGRAM else {name}
    recorded = {rule["record"] for rule in read_rules() if "record" in rule}
    for rule in read_rules():
        assert series_of(rule["expr"]) <= known
        assert {*re.findall(r"\b(?:[a-z_]+:)?conserve_[a-z_]+:[a-z0-9_]+", rule["expr"])} <= recorded


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    alerts = {rule["alert"]: rule for rule in read_rules() if "alert" in rule}
    tests = (FOLDER / "rules_test.yml").read_text()
    for name, rule in alerts.items():
        # Once that it is quiet, once that it fires.
        assert len(re.findall(rf"\b{name}\b", tests)) >= 2, name
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert {*rule["annotations"]} == {"summary", "description"}
