from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from conserve.policy.admission import Promise
from conserve.policy.capacity import INTERVAL_S
from loadtests.admission_week import (
    START_S,
    AdmissionReport,
    Offer,
    Outcome,
    Weeks,
    fits_really,
    judge,
    live_through,
    main,
    render,
    work_off,
)


def test_work_is_done_in_the_order_of_deadlines_and_late_ends_are_counted() -> None:
    promises = [Promise(50.0, 30.0), Promise(10.0, 20.0)]
    assert work_off(promises, 25.0, 10.0) == ([Promise(50.0, 25.0)], 0)
    assert work_off(promises, 25.0, 11.0) == ([Promise(50.0, 25.0)], 1)
    assert work_off(promises, 15.0, 11.0) == ([Promise(10.0, 5.0), Promise(50.0, 30.0)], 0)


def test_what_really_fits_goes_by_the_capacity_that_comes() -> None:
    done = [0.0, 10.0, 10.0, 40.0]
    now_s = START_S + INTERVAL_S
    assert fits_really(done, 1, [Promise(now_s + 2 * INTERVAL_S, 30.0)])
    assert not fits_really(done, 1, [Promise(now_s + 2 * INTERVAL_S, 31.0)])
    assert not fits_really(done, 1, [Promise(now_s + INTERVAL_S, 1.0)])


def test_without_room_all_are_refused_and_with_plenty_none_is() -> None:
    offers = [Offer(7 * 288 + number, 1_000.0, 12) for number in range(20)]
    none = live_through(Weeks([0.0] * 8 * 288, offers), 1)
    assert (none.admitted, none.refused, none.refused_needlessly) == (0, 20, 0)
    plenty = live_through(Weeks([1_000.0] * 8 * 288, offers), 2)
    assert (plenty.admitted, plenty.late, plenty.refused) == (20, 0, 0)


def test_a_week_is_the_same_every_time() -> None:
    assert Weeks.make(3) == Weeks.make(3)
    assert Weeks.make(3) != Weeks.make(4)


@pytest.mark.parametrize(("value", "verdict"), [(0, "goal met"), (0.04, "met"), (0.06, "missed")])
def test_figures_have_verdicts(value: float, verdict: str) -> None:
    assert judge(value, 0.05) == verdict


def test_the_report_says_how_many_batches_there_were(tmp_path: Path) -> None:
    week = Outcome(seed=0, admitted=90, late=0, refused=10, refused_needlessly=1)
    report = AdmissionReport(
        quantile=0.01,
        promised_share=0.9,
        weeks=[week],
        batches=100,
        admitted=90,
        late=0,
        refused=10,
        refused_needlessly=1,
    )
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(render(report))
    text = console.export_text()
    assert "1 weeks of changing online load, 100 batches" in text
    assert "1 (1.0%)" in text


def test_the_command_writes_a_report(tmp_path: Path) -> None:
    main(weeks=1, first_seed=0, out=tmp_path)
    report = json.loads((tmp_path / "admission.json").read_text())
    assert report["batches"] == report["admitted"] + report["refused"] > 50
    assert report["needless_share"] <= 1
