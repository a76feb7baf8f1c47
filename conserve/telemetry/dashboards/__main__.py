"""`python -m conserve.telemetry.dashboards`: writes the dashboards to `cluster/grafana`."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from conserve.telemetry.dashboards.boards import BOARDS
from conserve.telemetry.dashboards.chart import Board, build


def write_dashboard(board: Board) -> str:
    """The JSON text of a dashboard."""
    return JSONEncoder(sort_keys=True, indent=1).encode(build(board).build()) + "\n"


def main() -> None:
    """Writes all of them."""
    folder = Path(__file__).parents[3] / "cluster" / "grafana"
    for board in BOARDS:
        (folder / f"{board.uid}.json").write_text(write_dashboard(board), encoding="utf-8")


if __name__ == "__main__":
    main()
