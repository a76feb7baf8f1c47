"""Completion windows: `24h` as OpenAI has it, or any number of minutes, hours or days."""

from __future__ import annotations

import math
import re

_WINDOW = re.compile(r"([1-9][0-9]{0,8})([mhd])", re.ASCII)
_UNIT_S = {"m": 60, "h": 3_600, "d": 86_400}


def parse_window(text: str, max_window_s: int) -> int:
    """Returns the length of a completion window in seconds.

    Raises:
        ValueError: the text is not a window, or longer than `max_window_s`. The message is fit for a client.
    """
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text[:64]}' is not a completion window: write '24h', or another number of m, h or d.")
    seconds = int(match[1]) * _UNIT_S[match[2]]
    if seconds > max_window_s:
        raise ValueError(f"'{text}' is too long: at most {format_window(max_window_s)} is allowed.")
    return seconds


def format_window(seconds: int) -> str:
    """Writes a length of time in its largest whole unit, for messages."""
    for unit in ("d", "h", "m"):
        if seconds % _UNIT_S[unit] == 0:
            return f"{seconds // _UNIT_S[unit]}{unit}"
    return f"{seconds} s"


def round_up_window(seconds: float, max_window_s: int) -> str | None:
    """The shortest window that is no shorter, in whole minutes up to three hours, in hours up to three days, in days.

    Returns:
        None if all windows up to `max_window_s` are shorter.
    """
    for unit, most in (("m", 180), ("h", 72), ("d", 1_000_000_000)):
        count = max(1, math.ceil(seconds / _UNIT_S[unit]))
        if count < most:
            break
    if count * _UNIT_S[unit] <= max_window_s:
        return f"{count}{unit}"
    # The longest window may not be a whole number of that unit.
    return format_window(max_window_s) if seconds <= max_window_s and max_window_s % 60 == 0 else None
