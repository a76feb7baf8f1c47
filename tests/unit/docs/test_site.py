"""The site builds strictly, says all that the pages say, and needs nothing from elsewhere."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from tests.unit.docs.conftest import ROOT

DOCS = ROOT / "docs"
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
"""Elements that a browser loads something for, and by which attribute."""


class Reader(HTMLParser):
    """What a page loads, and the text of its paragraphs."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.paragraphs: list[str] = []
        self._in_paragraph = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED and (tag != "link" or values.get("rel") in ("stylesheet", "icon", "preconnect", "preload")):
            self.loaded.append(values.get(LOADED[tag]) or "")
        if tag == "p":
            self._in_paragraph = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._in_paragraph = False

    def handle_data(self, data: str) -> None:
        if self._in_paragraph:
            self.paragraphs[-1] += data


def read_pages(site: Path) -> Iterator[tuple[str, Reader]]:
    for path in sorted(site.rglob("*.html")):
        reader = Reader()
        reader.feed(path.read_text())
        yield path.name, reader


def test_every_page_is_built(site: Path) -> None:
    assert {path.stem for path in DOCS.glob("*.md")} <= {path.stem for path in site.glob("*.html")}


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    """Neither pages nor styles load anything from another host; links that a reader follows may lead there."""
    for name, reader in read_pages(site):
        assert reader.loaded
        for address in reader.loaded:
            parts = urlsplit(address)
            assert (parts.scheme, parts.netloc) == ("", ""), (name, address)
            if name != "404.html":
                assert (site / parts.path).exists(), (name, address)
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text().replace('url("', "url("), style


def test_lists_and_tables_are_read_as_such(site: Path) -> None:
    """They need an empty line before them, which other readers of Markdown do not ask for."""
    for name, reader in read_pages(site):
        for paragraph in reader.paragraphs:
            for line in paragraph.splitlines()[1:]:
                assert not line.startswith(("- ", "* ", "| ", "1. ", "```")), (name, line)


def test_the_search_finds_settings(site: Path) -> None:
    assert "safepoint_interval_layers" in (site / "search" / "search_index.json").read_text()


def test_a_broken_link_is_an_error() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["strict"] is True
    checks = {name: value for part in config["validation"].values() for name, value in part.items()}
    assert set(checks.values()) == {"warn"}
    assert {"anchors", "not_found", "omitted_files", "absolute_links", "unrecognized_links"} == checks.keys()


def test_the_figures_are_those_of_the_program(tmp_path: Path) -> None:
    program = runpy.run_path(str(DOCS / "images" / "draw.py"))
    for path in program["draw_all"](tmp_path):
        assert path.read_text() == (DOCS / "images" / path.name).read_text(), "python docs/images/draw.py"
