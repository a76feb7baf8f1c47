"""`python -m loadtests.admission_week`: whether admission keeps its word, and what it refuses without need.

Weeks of online load that follows the day and the days of the week, with noise and with rushes of some hours. In the
first week capacity is only looked at; in the second one batches come, more than there is room for, and each is admitted
or refused by the policies that the application uses (`conserve.policy`). No capacity is lost. Then it is counted:

- batches that were admitted and were late;
- batches that were refused, though they would have fitted with 1.5 times their work beside all that was admitted then.

Nothing is served: a week takes a second.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import track
from rich.table import Table

from conserve.config import JobsSettings
from conserve.policy.admission import Promise, decide
from conserve.policy.capacity import DAY_S, INTERVAL_S, INTERVALS_PER_DAY, CapacityHistory
from conserve.policy.forecast import PROMISED_SHARE, PromisedCapacity

START_S: Final = 20_000 * DAY_S
DAYS: Final = 15
FIRST_DAY: Final = 7
LAST_DAY: Final = 14
"""Batches come from the beginning of the one to that of the other; the last of them have a day more to end."""
HORIZON_S: Final = 2 * DAY_S
CAPACITY_TOKENS_PER_S: Final = 2_000.0
"""Of the replicas without any online load."""
WINDOWS: Final = (12, 24, 72, INTERVALS_PER_DAY)
"""Completion windows, in intervals: an hour, two, six, a day."""
ARRIVAL_SHARE: Final = 0.06
"""Of intervals in which a batch comes: with these sizes as much work in all as there is room for."""
MEDIAN_TOKENS: Final = 3e6
SPREAD: Final = 1.0
"""Of the logarithm of sizes."""
SPARE: Final = 1.5
MOST_REFUSED: Final = 0.05
DEFAULT_QUANTILE: Final = JobsSettings().forecast_quantile


@dataclass(frozen=True)
class Offer:
    """A batch that comes at the beginning of an interval."""

    interval: int
    tokens: float
    window: int

    @property
    def promise(self) -> Promise:
        """What it asks for."""
        return Promise(START_S + (self.interval + self.window) * INTERVAL_S, self.tokens)


@dataclass(frozen=True)
class Weeks:
    """What is left over of the capacity, in tokens a second by interval, and the batches that come."""

    rates: Sequence[float]
    offers: Sequence[Offer]

    @classmethod
    def make(cls, seed: int) -> Weeks:
        """Weeks that another seed makes otherwise."""
        generator = random.Random(seed)
        rates: list[float] = []
        noise, rush = 0.0, 0
        for number in range(DAYS * INTERVALS_PER_DAY):
            day = 0.5 - 0.4 * math.cos(2 * math.pi * (number % INTERVALS_PER_DAY) / INTERVALS_PER_DAY)
            weekend = 0.7 if number // INTERVALS_PER_DAY % 7 >= 5 else 1.0
            noise = 0.9 * noise + generator.gauss(0, 0.02)
            rush = generator.randint(6, 24) if rush == 0 and generator.random() < 0.004 else max(0, rush - 1)
            load = min(0.97, max(0.03, day * weekend + noise + (0.15 if rush else 0.0)))
            rates.append(CAPACITY_TOKENS_PER_S * (1 - load))
        offers = [
            Offer(number, generator.lognormvariate(math.log(MEDIAN_TOKENS), SPREAD), generator.choice(WINDOWS))
            for number in range(FIRST_DAY * INTERVALS_PER_DAY, LAST_DAY * INTERVALS_PER_DAY)
            if generator.random() < ARRIVAL_SHARE
        ]
        return cls(rates, offers)


class Outcome(BaseModel):
    """What became of the batches of a week."""

    seed: int
    admitted: int = 0
    late: int = 0
    refused: int = 0
    refused_needlessly: int = 0

    @property
    def batches(self) -> int:
        """All that came."""
        return self.admitted + self.refused


class AdmissionReport(BaseModel):
    """What is written to `admission.json`."""

    quantile: float
    promised_share: float
    weeks: list[Outcome]
    batches: int
    admitted: int
    late: int
    refused: int
    refused_needlessly: int

    @property
    def needless_share(self) -> float:
        """Of all batches that came."""
        return self.refused_needlessly / self.batches if self.batches else 0.0


def live_through(
    weeks: Weeks, seed: int, quantile: float = DEFAULT_QUANTILE, promised_share: float = PROMISED_SHARE
) -> Outcome:
    """Lets the weeks pass; work is done in the order of its deadlines."""
    done = list(accumulate((rate * INTERVAL_S for rate in weeks.rates), initial=0.0))
    offers = {offer.interval: offer for offer in weeks.offers}
    history, outcome = CapacityHistory(), Outcome(seed=seed)
    promises: list[Promise] = []
    for number, rate in enumerate(weeks.rates):
        now_s = START_S + number * INTERVAL_S
        if (offer := offers.get(number)) is not None:
            capacity = PromisedCapacity(history, now_s, HORIZON_S, quantile, promised_share)
            if decide(promises, offer.promise, capacity, now_s).fits:
                promises.append(offer.promise)
                outcome.admitted += 1
            else:
                outcome.refused += 1
                larger = offer.promise._replace(tokens=SPARE * offer.tokens)
                outcome.refused_needlessly += fits_really(done, number, [*promises, larger])
        promises, late = work_off(promises, rate * INTERVAL_S, now_s + INTERVAL_S)
        outcome.late += late
        history.observe(now_s, rate * INTERVAL_S, INTERVAL_S)
    outcome.late += len(promises)  # All deadlines are over.
    return outcome


def work_off(promises: Sequence[Promise], tokens: float, end_s: float) -> tuple[list[Promise], int]:
    """An interval that ends at `end_s`: what is left of the promises, and how many came to their end too late in it."""
    left, late = [], 0
    for promise in sorted(promises):
        part = min(tokens, promise.tokens)
        tokens -= part
        if promise.tokens - part > 1e-6:
            left.append(promise._replace(tokens=promise.tokens - part))
        elif end_s > promise.deadline_s + 1e-6:
            late += 1
    return left, late


def fits_really(done: Sequence[float], number: int, promises: Sequence[Promise]) -> bool:
    """Whether promises can all be kept on the capacity that really comes. `done` are tokens until each interval."""
    now_s, due = START_S + number * INTERVAL_S, 0.0
    for promise in sorted(promises):
        due += promise.tokens
        last = min(len(done) - 1, number + round((promise.deadline_s - now_s) / INTERVAL_S))
        if due > done[last] - done[number]:
            return False
    return True


def measure(seeds: Sequence[int], quantile: float, promised_share: float) -> AdmissionReport:
    """The weeks of these seeds."""
    shown = track(seeds, "weeks", console=Console(stderr=True), transient=True)
    weeks = [live_through(Weeks.make(seed), seed, quantile, promised_share) for seed in shown]
    return AdmissionReport(
        quantile=quantile,
        promised_share=promised_share,
        weeks=weeks,
        batches=sum(week.batches for week in weeks),
        admitted=sum(week.admitted for week in weeks),
        late=sum(week.late for week in weeks),
        refused=sum(week.refused for week in weeks),
        refused_needlessly=sum(week.refused_needlessly for week in weeks),
    )


def render(report: AdmissionReport) -> Table:
    """The table that is printed."""
    table = Table(
        title=f"{len(report.weeks)} weeks of changing online load, {report.batches:,} batches",
        caption=f"{report.admitted:,} admitted, {report.refused:,} refused; forecast_quantile {report.quantile:g}, "
        f"{report.promised_share:.0%} of the forecast is promised.",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("", "measured", "of", "must", "goal", "verdict"):
        table.add_column(name, justify="left" if name in ("", "verdict") else "right")
    share = report.needless_share
    table.add_row("admitted and then late", str(report.late), f"{report.admitted:,}", "0", "0", judge(report.late, 0))
    table.add_row(
        f"refused, though {SPARE:g}x would have fitted",
        f"{report.refused_needlessly} ({share:.1%})",
        f"{report.batches:,}",
        f"<= {MOST_REFUSED:.0%}",
        "0",
        judge(share, MOST_REFUSED),
    )
    return table


def judge(value: float, most: float) -> str:
    """In words, as they stand in the table; the goal of both figures is 0."""
    if value <= 0:
        return "goal met"
    return "met" if value <= most else "missed"


def main(
    weeks: Annotated[int, typer.Option(min=1, help="How many, each with a seed of its own.")] = 20,
    first_seed: Annotated[int, typer.Option(min=0)] = 0,
    quantile: Annotated[float, typer.Option(min=1e-4, max=0.5, help="`jobs.forecast_quantile`.")] = DEFAULT_QUANTILE,
    promised_share: Annotated[float, typer.Option(min=0.01, max=1.0, help="Of a forecast.")] = PROMISED_SHARE,
    out: Annotated[Path | None, typer.Option(help="Folder for admission.json.")] = None,
) -> None:
    """Prints both figures with what they must and should be, and writes `admission.json`."""
    report = measure(range(first_seed, first_seed + weeks), quantile, promised_share)
    Console(highlight=False).print(render(report))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {**report.model_dump(), "needless_share": report.needless_share}
        (out / "admission.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
