"""What the page is made of, and what it is told."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from conserve.config import load_settings
from conserve.harvest.messages import CapacityReport
from conserve.jobs.batch import Batch, BatchError, BatchErrors, BatchStatus
from conserve.jobs.tenants import TenantDirectory
from deployments.api_errors import install_api_error_handlers
from deployments.console.feed import ConsoleFeed
from deployments.console.frames import MOST_ERRORS, MOST_REPLICAS, BatchFrame, ReplicasFrame
from deployments.console.routes import build_console_router


def make_report(number: int, **more: Any) -> CapacityReport:
    return CapacityReport.model_validate(
        {"replica_id": f"r{number:03}", "model": "m", "state": "serving", "window": 4, **more}
    )


@pytest.fixture
async def http() -> Any:
    app = FastAPI()
    settings = load_settings({"tenants": {"a": {"api_keys": ["sk-a"]}}}, {})
    feed = ConsoleFeed(lambda: None, settings, TenantDirectory(settings.tenants))
    app.include_router(build_console_router(lambda: feed))
    install_api_error_handlers(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


class Page(HTMLParser):
    """Collects what the page refers to, and what its policy does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.forbidden: list[str] = []
        self.ids: list[str] = []
        self.described: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                self.references.append(value or "")
            if name == "style" or name.startswith("on"):
                self.forbidden.append(f"{tag} {name}")
            if name == "id":
                self.ids.append(value or "")
            if name in ("aria-describedby", "aria-labelledby", "for"):
                self.described += (value or "").split()
        if tag == "style" or (tag == "script" and not dict(attrs).get("src")):
            self.forbidden.append(tag)


async def test_all_that_the_page_needs_comes_from_here(http: httpx.AsyncClient) -> None:
    page = Page()
    answer = await http.get("/console")
    assert answer.headers["content-type"].startswith("text/html")
    page.feed(answer.text)
    assert page.forbidden == []
    assert set(page.described) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    to_read = [one for one in page.references if not one.startswith("#")]
    seen = set()
    while to_read:
        path = to_read.pop()
        part = await http.get(f"/{path}")
        assert part.status_code == 200, path
        assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z]+\.[a-z]", part.text), path
        seen.add(path)
        modules = re.findall(r'from "\./([a-z]+\.js)"', part.text)
        to_read += [f"console/{one}" for one in modules if f"console/{one}" not in seen]
    assert {"console/console.js", "console/picture.js", "console/console.css", "console/icon.svg"} <= seen


async def test_a_strict_policy_goes_with_every_part(http: httpx.AsyncClient) -> None:
    for path in ("/console", "/console/console.js", "/console/icon.svg"):
        headers = (await http.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


async def test_a_browser_asks_again_and_is_told_that_nothing_has_changed(http: httpx.AsyncClient) -> None:
    first = await http.get("/console/console.css")
    again = await http.get("/console/console.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await http.get("/console/console.css", headers={"If-None-Match": '"else"'})).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2froutes.py", "console.html", "__init__.py"])
async def test_nothing_else_is_served(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/console/{name}")).status_code == 404


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer sk-b"}])
async def test_events_need_a_key_where_there_are_keys(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await http.get("/conserve/v1/events", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_batches_of_others_are_not_in_what_is_said_of_replicas() -> None:
    frame = ReplicasFrame.of([make_report(1, stopped=["batch_of_somebody"])], has_controller=True)
    assert "batch_of_somebody" not in frame.model_dump_json()
    assert frame.replicas[0].doing.startswith("no online requests")


def test_of_many_replicas_some_are_shown_and_all_are_counted() -> None:
    reports = [make_report(number, state="draining" if number < 5 else "serving") for number in range(200)]
    frame = ReplicasFrame.of(reports, has_controller=False)
    assert len(frame.replicas) == MOST_REPLICAS
    assert frame.replicas[0].replica_id == "r005"
    assert (frame.totals.replicas, frame.totals.serving, frame.totals.window) == (200, 195, 800)


def test_of_many_errors_of_a_file_the_first_are_shown() -> None:
    errors = [BatchError(code="invalid", message="no JSON", line=number) for number in range(1, 41)]
    batch = Batch(
        id="batch_1",
        endpoint="/v1/completions",
        input_file_id="file-1",
        completion_window="24h",
        status=BatchStatus.FAILED,
        created_at=1,
        errors=BatchErrors(data=errors),
    )
    frame = BatchFrame.of(batch)
    assert (len(frame.errors), frame.more_errors) == (MOST_ERRORS, 40 - MOST_ERRORS)
    assert frame.errors[0].line == 1
