"""What the controller and the keeper know of the batches that have not ended, read some times a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from conserve.jobs.batch import ActiveBatch, BatchStatus
from conserve.jobs.batch_fields import CHANGING_FIELDS, FIXED_FIELDS, read_changing, read_fixed
from conserve.jobs.keys import Keys
from conserve.jobs.scripts import Scripts

AT_ONCE: Final = 100
"""While a script runs nobody else is served."""


class SummaryReader:
    """Reads summaries. What does not change any more of a batch in progress is read once and remembered.

    Args:
        scripts: Of the server.
        keys: Of the deployment.
    """

    def __init__(self, scripts: Scripts, keys: Keys) -> None:
        self._scripts = scripts
        self._keys = keys
        self._fixed: dict[str, dict[str, Any]] = {}

    async def read(self, batch_ids: Sequence[str]) -> list[ActiveBatch]:
        """Of these batches, in this order; those that are not there are left out. One round trip or two.

        Errors of Redis come through.
        """
        # Others may ask at the same time, and what is remembered may change meanwhile.
        fixed = {one: self._fixed[one] for one in batch_ids if one in self._fixed}
        unknown = [one for one in batch_ids if one not in fixed]
        lines = dict(zip(fixed, await self._run([*fixed], CHANGING_FIELDS), strict=True))
        for batch_id, line in zip(unknown, await self._run(unknown, CHANGING_FIELDS + FIXED_FIELDS), strict=True):
            lines[batch_id] = line
        return [
            self._to_summary(one, values, fixed.get(one)) for one in batch_ids if (values := lines[one]) is not None
        ]

    def retain(self, batch_ids: Sequence[str]) -> None:
        """Forgets all but these."""
        for one in self._fixed.keys() - set(batch_ids):
            del self._fixed[one]

    def _to_summary(self, batch_id: str, values: list[Any], fixed: dict[str, Any] | None) -> ActiveBatch:
        *stored, ready, leased = values
        count = len(CHANGING_FIELDS)
        changing = read_changing([*stored[:count], ready, leased])
        if fixed is None:
            fixed = read_fixed(stored[count:])
            # What ends before it has been in progress may still learn how many requests it had.
            if changing["status"] is BatchStatus.IN_PROGRESS:
                self._fixed[batch_id] = fixed
        return ActiveBatch(batch_id=batch_id, **changing, **fixed)

    async def _run(self, batch_ids: Sequence[str], fields: Sequence[str]) -> list[Any]:
        bulks = [batch_ids[start : start + AT_ONCE] for start in range(0, len(batch_ids), AT_ONCE)]
        calls = [([self._keys.batch_hash(one) for one in bulk], fields) for bulk in bulks]
        texts = await self._scripts.run_all("summaries", calls) if calls else []
        lines = ",".join(texts).replace("\n", ",")  # JSON has no line end but those between two batches.
        found: list[Any] = msgspec.json.decode(f"[{lines}]")
        return found
