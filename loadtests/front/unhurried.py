"""A class of requests without objectives worth the name, to compare engines that compute the same batches.

ConServe gives prompts no more of an iteration than the TBT objective of those who decode allows; a bare server
fills it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from conserve.config import Settings

UNHURRIED: Final = "unhurried"
OBJECTIVE_MS: Final = 600_000
_VARIABLE: Final = "CONSERVE_SLO__CLASSES"


def add_unhurried(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a stack that has this class besides those that it has anyway."""
    try:
        classes = json.loads(environ.get(_VARIABLE) or "{}")
    except ValueError:
        return dict(environ)  # who reads the settings says what is wrong with it
    objectives = {"ttft_slo_ms": OBJECTIVE_MS, "tbt_slo_ms": OBJECTIVE_MS}
    return {**environ, _VARIABLE: json.dumps({**classes, UNHURRIED: objectives})}


def find_unhurried(settings: Settings) -> str | None:
    """The name of the class, where a configuration has it and it means something."""
    return UNHURRIED if UNHURRIED in settings.slo.classes and settings.engine.mode == "conserve" else None
