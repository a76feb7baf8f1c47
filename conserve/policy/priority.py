"""The two kinds of request, as scheduling priorities of the engine (a lower number runs first)."""

from __future__ import annotations

ONLINE_PRIORITY = 0
"""Chat and completions: a person waits for them."""

OFFLINE_PRIORITY = 1_000
"""Lines of a batch: they run in what is left over. Far below online, so that classes can be put in between."""
