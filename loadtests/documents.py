"""Real documents that any machine has: the long descriptions of the installed Python distributions.

A folder of `.txt` and `.md` files can be taken instead. Texts are cleaned to prose (badges, HTML, code and link
targets are no use to a summary) and cut to a size that suits the model's context.
"""

from __future__ import annotations

import html
import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".md", ".txt")
MAX_FILE_CHARS = 1_000_000
MIN_PARAGRAPH_WORDS = 4  # headings and link texts left on their own have fewer

_CODE_FENCE = re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[^\n]*$", re.MULTILINE | re.DOTALL)
_HTML_DROPPED = re.compile(r"<!--.*?-->|<(script|style|table|pre|code)\b.*?</\1>", re.IGNORECASE | re.DOTALL)
_HTML_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_MARKDOWN_IMAGE = re.compile(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])")
_MARKDOWN_LINK = re.compile(r"\[([^\[\]]*)\](\([^)]*\)|\[[^\]]*\])")
_LINK_DEFINITION = re.compile(r"^[ \t]*\[[^\]]+\]:[ \t]*\S+.*$", re.MULTILINE)
# An explicit reStructuredText construct (image, code block, link target, comment) with its indented body.
_RST_BLOCK = re.compile(r"^([ \t]*)\.\.(?:[ \t][^\n]*)?\n(?:(?:\1[ \t]+[^\n]*|[ \t]*)\n)*", re.MULTILINE)
_RST_LITERAL = re.compile(r"::[ \t]*\n[ \t]*\n(?:[ \t]+[^\n]*\n|[ \t]*\n)+")
_DOCTEST = re.compile(r"^[ \t]*>>>.*?(?=\n[ \t]*\n)", re.MULTILINE | re.DOTALL)
_RST_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}")
_RST_REFERENCE = re.compile(r"`([^`\n]+)`_{1,2}|\b(\w+)_\b(?=[\s.,;:)])")
_RST_ROLE = re.compile(r":[\w:.+-]+:`([^`]+)`")
_RST_SUBSTITUTION = re.compile(r"\|[\w .:-]+\|_{0,2}")
_URL = re.compile(r"<?https?://[^\s>)\]]+>?")
_RULE_LINE = re.compile(r"^[ \t]*([=\-~^\"'`#*+_.:|])\1{2,}[=\-~^\"'`#*+_.:| ]*$", re.MULTILINE)
_LINE_MARK = re.compile(r"^[ \t]*(#{1,6}|>|[-*+]|\d+[.)])[ \t]+", re.MULTILINE)
_EMPHASIS = re.compile(r"\*\*|``|`|(?<!\w)\*(?=\S)|(?<=\S)\*(?!\w)")
_FRONT_MATTER_COMMENT = re.compile(r"\{[%#].*?[%#]\}", re.DOTALL)


class DocumentsError(ValueError):
    """No usable documents were found; the message says where they were looked for and what would be usable."""


@dataclass(frozen=True)
class Document:
    """A text to be summarised: `name` is the distribution's name or the file's path inside its folder."""

    name: str
    text: str


def read_documents(
    folder: Path | None = None, *, max_words: int = 230, max_chars: int = 1_500, min_words: int = 60
) -> list[Document]:
    """Reads the documents of `folder`, or of the installed distributions where it is None, in a fixed order.

    Args:
        folder: Searched with its sub-folders for `.txt` and `.md` files.
        max_words: Longer documents are cut here; 230 words are about 350 tokens.
        max_chars: Cuts too, for texts with few spaces.
        min_words: Documents with less prose are dropped. It counts before the cut.

    Raises:
        DocumentsError: there is no usable document.
    """
    if min_words < 1 or max_words < 1 or max_chars < 1:
        raise DocumentsError("min_words, max_words and max_chars must be at least 1")
    texts = _read_distributions() if folder is None else _read_folder(folder)
    documents: list[Document] = []
    seen: set[str] = set()
    for name, raw in texts:
        text = clean_text(raw)
        if len(text.split()) >= min_words and text not in seen:
            seen.add(text)
            documents.append(Document(name, cut_text(text, max_words, max_chars)))
    if not documents:
        where = "the descriptions of the installed distributions" if folder is None else f"the files of {folder}"
        raise DocumentsError(f"no usable document in {where}: at least {min_words} words of prose are needed")
    return documents


def clean_text(raw: str) -> str:
    """The prose of a Markdown, reStructuredText or plain text: paragraphs parted by one empty line."""
    text = raw.replace("\r\n", "\n") + "\n\n"
    for pattern in (_CODE_FENCE, _HTML_DROPPED, _FRONT_MATTER_COMMENT, _RST_BLOCK):
        text = pattern.sub("\n", text)
    text = _DOCTEST.sub("", _RST_LITERAL.sub(":\n\n", text))
    for pattern in (_MARKDOWN_IMAGE, _LINK_DEFINITION, _RST_SUBSTITUTION):
        text = pattern.sub("", text)
    # Links come after images because a badge is an image inside a link, which leaves a link without a text.
    for pattern in (_MARKDOWN_LINK, _RST_LINK, _RST_ROLE):
        text = pattern.sub(r"\1", text)
    text = _RST_REFERENCE.sub(lambda match: match[1] or match[2], text)
    text = html.unescape(_HTML_TAG.sub("", text))
    for pattern in (_URL, _RULE_LINE, _LINE_MARK, _EMPHASIS):
        text = pattern.sub("", text)
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n[ \t]*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if _is_prose(paragraph))


def cut_text(text: str, max_words: int, max_chars: int) -> str:
    """The beginning of `text`, at most so many words and characters, cut between words where it has any."""
    end = 0
    for count, word in enumerate(re.finditer(r"\S+", text), start=1):
        if count > max_words or word.end() > max_chars:
            break
        end = word.end()
    return text[: end or max_chars]


def _is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in paragraph)
    return len(paragraph.split()) >= MIN_PARAGRAPH_WORDS and letters >= 0.75 * len(paragraph)


def _read_distributions() -> Iterator[tuple[str, str]]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        # Holds the body of the file too, which is where the description is since format 2.1.
        text = distribution.metadata.json.get("description", "")
        # An old installation of the same distribution may lie further down the path: the first one counts.
        found.setdefault(re.sub(r"[-_.]+", "-", distribution.name).lower(), str(text))
    yield from sorted(found.items())


def _read_folder(folder: Path) -> Iterable[tuple[str, str]]:
    if not folder.is_dir():
        raise DocumentsError(f"{folder} is not a folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DocumentsError(f"no {' or '.join(SUFFIXES)} file in {folder}")
    for path in paths:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield path.relative_to(folder).as_posix(), file.read(MAX_FILE_CHARS)
