"""Which batches have prompts that begin alike: found out while their lines are checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

PREFIX_CHARS: Final = 512
"""Prompts that share less save next to nothing when they are computed one after the other."""
_LINES_COMPARED: Final = 16


class PromptPrefix:
    """The beginning that the prompts of a batch have in common, as far as the first lines tell."""

    def __init__(self) -> None:
        self._compared = 0
        self.digest = ""

    def compare(self, body: Mapping[str, Any]) -> None:
        """Takes the body of one more request."""
        if self._compared >= _LINES_COMPARED or (self._compared and not self.digest):
            return
        text = json.dumps(body.get("messages") or body.get("prompt"))[:PREFIX_CHARS]
        digest = hashlib.sha256(text.encode()).hexdigest()[:16] if len(text) == PREFIX_CHARS else ""
        self.digest = digest if self._compared == 0 or digest == self.digest else ""
        self._compared += 1
