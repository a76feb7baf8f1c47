"""Values that no client should send: as JSON, as bytes, as headers. Everything follows from the random generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Final

DEEP: Final = 3_000
_RAW: Final = "\u0000raw:"
"""Before texts that stand in the JSON as they are, without quotes."""

SCALARS: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    0.5,
    -0.0,
    1e308,
    5e-324,
    "",
    " ",
    "0",
    "null",
    "\x00",
    "\ud800",
    "\udfff\ud800",
    "\U0001f600\u202e",
    "é" * 300,
    "x" * 5_000,
    "../../etc/passwd",
    "%s%n{}{0.__class__}",
    "'; --",
    "flex",
    "default",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"\ud800": 1},
    {"__class__": "x"},
    f"{_RAW}NaN",
    f"{_RAW}-Infinity",
    f"{_RAW}1e999",
    f"{_RAW}{'9' * 400}",
    f"{_RAW}{'9' * 5_000}",
    f"{_RAW}{'[' * 600}{']' * 600}",
    f"{_RAW}{'[' * DEEP}{']' * DEEP}",
    _RAW + '{"a":' * 600 + "0" + "}" * 600,
)
NAMES: Final = ("priority", "n", "stream", "service_tier", "\ud800", "", "\x00", "__proto__", "x" * 300, "metadata")
PIECES: Final = (
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b'"',
    b"\\",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b",",
    b"\r\n",
    b"\n",
    b"--",
)


class Wild:
    """Draws them.

    Args:
        generator: What decides.
    """

    def __init__(self, generator: random.Random) -> None:
        self.generator = generator

    def value(self) -> Any:
        """A value for anything."""
        return self.generator.choice(SCALARS)

    def mutate(self, value: Any) -> Any:
        """The value with one to three of its places changed."""
        for _ in range(self.generator.randint(1, 3)):
            value = self._mutate_once(value)
        return value

    def _mutate_once(self, value: Any) -> Any:
        draw = self.generator
        if isinstance(value, dict) and value and draw.random() < 0.85:
            changed = dict(value)
            name = draw.choice(list(changed))
            way = draw.randrange(6)
            if way == 0:
                del changed[name]
            elif way == 1:
                changed[draw.choice(NAMES)] = self.value()
            else:
                changed[name] = self._mutate_once(changed[name])
            return changed
        if isinstance(value, list) and value and draw.random() < 0.85:
            changed_list = list(value)
            at = draw.randrange(len(changed_list))
            if draw.random() < 0.2:
                changed_list *= draw.choice([0, 2, 50])
            else:
                changed_list[at] = self._mutate_once(changed_list[at])
            return changed_list
        return self.value()

    def write(self, value: Any) -> bytes:
        """A value as JSON, or nearly."""
        text = json.dumps(value)
        marker = json.dumps(_RAW)[1:-1]
        parts = text.split(f'"{marker}')
        # What is raw has no quotes of its own but escaped ones.
        text = parts[0] + "".join(_unquote(part) for part in parts[1:])
        encoded = text.encode()
        return self.spoil(encoded) if self.generator.random() < 0.2 else encoded

    def spoil(self, content: bytes) -> bytes:
        """Bytes with some of them changed."""
        draw = self.generator
        changed = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(changed) + 1)
            way: Callable[[], None] = draw.choice(
                [
                    lambda at=at: changed.__delitem__(slice(at, at + draw.randint(1, 20))),
                    lambda at=at: changed.__setitem__(slice(at, at), draw.choice(PIECES)),
                    lambda at=at: changed.__setitem__(slice(at, at + 1), draw.randbytes(1)),
                    lambda at=at: changed.__setitem__(slice(at, at), changed[at : at + 40]),
                    lambda at=at: changed.__delitem__(slice(at, None)),
                ]
            )
            way()
        return bytes(changed)


def _unquote(part: str) -> str:
    raw, rest = _split_string(part)
    return str(json.loads(f'"{raw}"')) + rest


def _split_string(part: str) -> tuple[str, str]:
    at = 0
    while part[at] != '"':
        at += 2 if part[at] == "\\" else 1
    return part[:at], part[at + 1 :]
