"""What to say of API keys to who has brought a stack up."""

from __future__ import annotations

import asyncio

from conserve.jobs.errors import EmbeddedServerError, UnsuitableServerError
from conserve.jobs.key_desk import use_keys
from conserve.jobs.link import OUTAGES
from conserve.launch.ports import is_loopback
from conserve.launch.serve_config import ServeConfig


def note_on_keys(config: ServeConfig) -> str | None:
    """That callers need no key, or have none; None where all is as it should be, or cannot be known."""
    settings = config.settings
    if settings.http.keys == "none":
        return "Nobody is asked for an API key (`http.keys: none`): something in front has to check who calls."
    if any(one.api_keys for one in settings.tenants.values()):
        return None
    try:
        version, records = asyncio.run(use_keys(settings, lambda store: store.read_with_version()))
    except (UnsuitableServerError, EmbeddedServerError, *OUTAGES):
        return None
    if records:
        return None
    if settings.http.keys == "auto" and version is None and is_loopback(config.http_host):
        return (
            "No API key is needed: only this machine gets in. "
            "`conserve keys create NAME` makes one, and then everybody needs one."
        )
    return "There is no API key, so nobody gets in: make one with `conserve keys create NAME`."
