from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.documents import DocumentsError, clean_text, cut_text, read_documents

MARKDOWN = """\
<p align="center"><img src="logo.svg"></p>

[![Build](https://ci.example/badge.svg)](https://ci.example) ![Cover](https://c.example/x.svg)

# Gadget

Gadget is a **small** library for [parsing](https://example.org/parse) configuration files &amp; nothing else.

```python
secret_code = gadget.load("x")
```

* It reads `TOML` and *YAML* files, see https://example.org/docs for all of them.

[ref]: https://example.org/never
"""
RST = """\
Gizmo
=====

.. image:: https://ci.example/badge.svg
   :target: https://ci.example

Gizmo is a tool that turns `reStructuredText <https://rst.example>`_ into plain words for people::

    import gizmo_code

.. _link: https://example.org
"""


def test_markdown_becomes_prose() -> None:
    assert clean_text(MARKDOWN).split("\n\n") == [
        "Gadget is a small library for parsing configuration files & nothing else.",
        "It reads TOML and YAML files, see for all of them.",
    ]


def test_restructured_text_becomes_prose() -> None:
    assert clean_text(RST) == "Gizmo is a tool that turns reStructuredText into plain words for people:"


@pytest.mark.parametrize(
    ("words", "chars", "expected"),
    [(2, 100, "one two"), (9, 9, "one two"), (9, 100, "one two three"), (9, 2, "on")],
)
def test_texts_are_cut_between_words(words: int, chars: int, expected: str) -> None:
    assert cut_text("one two three", words, chars) == expected


def test_installed_distributions_have_documents() -> None:
    documents = read_documents(max_words=100, max_chars=700)
    names = [document.name for document in documents]
    assert len(documents) >= 20
    assert names == sorted(set(names))
    assert documents == read_documents(max_words=100, max_chars=700)
    assert all(len(document.text.split()) <= 100 and len(document.text) <= 700 for document in documents)
    assert not any("<img" in document.text or "](http" in document.text for document in documents)


def test_a_folder_is_read_in_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/z.txt", "a.md", "c.pdf"):
        (tmp_path / name).write_text(f"The file {name} holds words " * 30)
    (tmp_path / "short.md").write_text("Too short to be of any use.")
    assert [document.name for document in read_documents(tmp_path)] == ["a.md", "b/z.txt"]


def test_the_same_text_counts_once(tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("The same words again " * 30)
    assert [document.name for document in read_documents(tmp_path)] == ["a.md"]


def test_a_folder_without_documents_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DocumentsError, match=r"no \.md or \.txt file in"):
        read_documents(tmp_path)
    (tmp_path / "short.md").write_text("Too short to be of any use.")
    with pytest.raises(DocumentsError, match="at least 60 words"):
        read_documents(tmp_path)
    with pytest.raises(DocumentsError, match=r"short\.md is not a folder"):
        read_documents(tmp_path / "short.md")
