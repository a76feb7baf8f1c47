"""`docs/http.md` is what the routes say, and has all of them."""

from __future__ import annotations

from pathlib import Path

from deployments.http_reference import describe_routes, write_reference

PAGE = Path(__file__).parents[3] / "docs" / "http.md"


def test_the_page_is_what_the_routes_say() -> None:
    assert PAGE.read_text() == write_reference(), "python -m deployments.http_reference > docs/http.md"


def test_every_route_is_there() -> None:
    text = PAGE.read_text()
    paths = describe_routes()["paths"]
    assert "/v1/chat/completions" in paths
    missing = [
        (method, path) for path in paths for method in paths[path] if f"### {method.upper()} {path}\n" not in text
    ]
    assert missing == []
