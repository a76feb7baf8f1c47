"""What the shell is offered for arguments: `conserve --install-completion` makes it ask."""

from __future__ import annotations

import os

from conserve.client import Client, ConServeError
from conserve.client.async_client import DEFAULT_URL

TIMEOUT_S = 2.0
_MOST = 100


def complete_batches(incomplete: str) -> list[tuple[str, str]]:
    """Batches whose ids begin like that, each with its status; none where the application does not answer."""
    # Options on the line are not parsed yet, so it is the address of the environment.
    url = os.environ.get("CONSERVE_URL", DEFAULT_URL)
    try:
        with Client(url, timeout_s=TIMEOUT_S, retries=0) as client:
            return [(job.id, job.batch.status) for job in client.list(_MOST) if job.id.startswith(incomplete)]
    except (ConServeError, ValueError):
        return []
