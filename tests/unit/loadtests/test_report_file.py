from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from loadtests.report import BatchReport, Percentiles, Ratio, Report, ReportError, RunReport, read_report, write_report

REPORT = Report(
    machine="a machine",
    model="smol",
    engine={"max_num_seqs": 16},
    workload="demo",
    runs={
        "online-only": RunReport(ttft_ms=Percentiles(p50=1.5, p90=2, p99=3), online_requests=42, online_errors=0),
        "conserve": RunReport(offline_tokens_per_s=0.0),
    },
    ratios={"ttft_p99_vs_online_only": Ratio(median=1.1, min=0.9, max=1.3), "total_vs_online_only": Ratio(median=2)},
    batch=BatchReport(status="completed", total=48, completed=48, failed=0, output_file="output.jsonl"),
)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out" / "summary.json"
    write_report(path, REPORT)
    assert read_report(path) == REPORT
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.json"]


def test_what_is_not_known_is_absent_and_zero_is_not(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_report(path, REPORT)
    content = json.loads(path.read_text())
    assert set(content["runs"]["online-only"]) == {"ttft_ms", "online_requests", "online_errors"}
    assert content["runs"]["conserve"] == {"offline_tokens_per_s": 0.0}
    assert content["ratios"]["total_vs_online_only"] == {"median": 2.0}
    assert set(content["runs"]) == {"online-only", "conserve"}


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_report(path, REPORT)

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, REPORT.model_copy(update={"model": "other"}))
    assert read_report(path) == REPORT
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_file_that_is_no_report_is_named_with_the_field(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text('{"machine": "m", "model": "s", "workload": "demo", "runs": {"conserve": {"ttft": 1}}}')
    with pytest.raises(ReportError, match=r"summary\.json: runs\.conserve\.ttft: Extra inputs"):
        read_report(path)
    path.write_text("{")
    with pytest.raises(ReportError, match=r"summary\.json: file: Invalid JSON"):
        read_report(path)


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        Ratio(median=float("nan"))
