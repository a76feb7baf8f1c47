"""A plan as JSON, as a plot and as a page that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from conserve.simulator.planning import Outcome, Plan, Variant

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.3rem .8rem;"
    "text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def list_answers(plan: Plan) -> list[tuple[str, str]]:
    """What people ask, and the answers."""
    given, hours = plan.given, plan.backlog_hours
    done = f"{hours:,.1f} hours" if math.isfinite(hours) else "never"
    return [
        (
            "Online requests",
            f"{given.rate_per_s:,.2f} a second, gaps with a CV of {given.burst_cv:.1f}, "
            f"{given.duration_s / 60:,.0f} min seen",
        ),
        ("Objectives (P99)", f"TTFT {given.ttft_slo_ms:,.0f} ms, TBT {given.tbt_slo_ms:,.0f} ms"),
        ("Replicas that online requests need alone", f"{plan.alone.replicas:,} x {given.profile.name}"),
        ("P99 then", _describe(plan.alone)),
        ("P99 beside batch work", _describe(plan.together)),
        ("Batch tokens that can be harvested", f"{plan.tokens_per_day / 1e6:,.0f} million a day"),
        ("Backlog", f"{given.backlog_tokens / 1e6:,.0f} million tokens, done in {done}"),
        (
            "Replicas of their own for the same batch work",
            f"{plan.separate_replicas:,} more: ${plan.separate_dollars_per_day:,.0f} a day, "
            f"${plan.separate_dollars:,.0f} for the backlog",
        ),
        (
            "Cost of the online replicas in any case",
            f"${plan.alone.replicas * given.price * 24:,.0f} a day",
        ),
    ]


def list_variants(variants: Sequence[Variant]) -> list[tuple[str, str, str, str]]:
    """Rows of a table: name, replicas, P99 beside batch work, tokens a day."""
    rows = []
    for variant in variants:
        if variant.alone is None or variant.together is None:
            rows.append((variant.name, "-", "cannot be kept", "-"))
            continue
        tokens = variant.together.offline_tokens_per_s * 86_400 / 1e6
        rows.append((variant.name, f"{variant.alone.replicas:,}", _describe(variant.together), f"{tokens:,.0f}"))
    return rows


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON; what is infinite is null."""
    given = plan.given

    def outcome(found: Outcome | None) -> dict[str, Any] | None:
        if found is None:
            return None
        return {
            "replicas": found.replicas,
            "ttft_p99_ms": round(found.ttft_p99_ms, 2),
            "tbt_p99_ms": round(found.tbt_p99_ms, 2),
            "offline_tokens_per_s": round(found.offline_tokens_per_s, 1),
        }

    def variants(found: Sequence[Variant]) -> list[dict[str, Any]]:
        return [{"name": one.name, "alone": outcome(one.alone), "together": outcome(one.together)} for one in found]

    return {
        "profile": given.profile.name,
        "online_requests_per_s": round(given.rate_per_s, 4),
        "objectives": {"ttft_p99_ms": given.ttft_slo_ms, "tbt_p99_ms": given.tbt_slo_ms},
        "alone": outcome(plan.alone),
        "together": outcome(plan.together),
        "harvested_tokens_per_day": round(plan.tokens_per_day),
        "backlog_tokens": round(given.backlog_tokens),
        "backlog_hours": round(plan.backlog_hours, 3) if math.isfinite(plan.backlog_hours) else None,
        "separate": {
            "replicas": plan.separate_replicas,
            "dollars": round(plan.separate_dollars, 2),
            "dollars_per_day": round(plan.separate_dollars_per_day, 2),
        },
        "by_slo": variants(plan.by_slo),
        "by_burst": variants(plan.by_burst),
    }


def write_report(plan: Plan, folder: Path) -> list[Path]:
    """Writes `plan.json`, `plan.png` and `plan.html`. Returns their paths.

    Raises:
        OSError: They cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    picture = _draw(plan)
    paths = [folder / name for name in ("plan.json", "plan.png", "plan.html")]
    paths[0].write_text(json.dumps(to_dict(plan), indent=2) + "\n", encoding="utf-8")
    paths[1].write_bytes(picture)
    paths[2].write_text(_make_page(plan, picture), encoding="utf-8")
    return paths


def _describe(outcome: Outcome) -> str:
    return f"TTFT {outcome.ttft_p99_ms:,.0f} ms, TBT {outcome.tbt_p99_ms:,.0f} ms"


def _draw(plan: Plan) -> bytes:
    # Takes a second to import, for which the other commands need not wait.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    hours = plan.backlog_hours if math.isfinite(plan.backlog_hours) else 24.0
    left.plot([0, hours], [plan.given.backlog_tokens / 1e6, 0 if math.isfinite(plan.backlog_hours) else None])
    left.set(title="Backlog", xlabel="hours", ylabel="million tokens left", xlim=(0, None), ylim=(0, None))
    for axes, variants, title in (
        (middle, plan.by_slo, "Objectives"),
        (right, plan.by_burst, "Burstiness of arrivals"),
    ):
        names = [variant.name for variant in variants]
        tokens = [
            variant.together.offline_tokens_per_s * 86_400 / 1e6 if variant.together is not None else 0.0
            for variant in variants
        ]
        axes.bar(names, tokens, color="#4c8")
        for place, variant in enumerate(variants):
            label = f"{variant.alone.replicas:,}" if variant.alone is not None else "none"
            axes.text(place, tokens[place], label, ha="center", va="bottom")
        axes.set(title=f"{title} (above: replicas)", ylabel="million batch tokens a day")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _make_page(plan: Plan, picture: bytes) -> str:
    encoded = base64.b64encode(picture).decode()
    variants = ("", "replicas", "P99 beside batch work", "million batch tokens a day")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Capacity plan</title><style>{_STYLE}</style>"
        f"<h1>Capacity plan</h1>{_make_table((), list_answers(plan))}"
        f'<img alt="The backlog over time, and batch tokens a day by objectives and burstiness" '
        f'src="data:image/png;base64,{encoded}">'
        f"<h2>Other objectives, in the busiest ten minutes</h2>{_make_table(variants, list_variants(plan.by_slo))}"
        f"<h2>Other arrivals, likewise</h2>{_make_table(variants, list_variants(plan.by_burst))}</html>\n"
    )


def _make_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{head}{body}</table>"
