"""The name of every Redis key.

All keys of one batch carry the hash tag `{batch_id}` and thus lie in one slot of a Redis cluster, so that one script
may touch them together. The same holds for the keys of one file and for the indexes.
"""

from __future__ import annotations

from typing import NamedTuple

from conserve.config import DEFAULT_TENANT

SCHEMA_VERSION = "2"
OLDER_SCHEMAS = ("1",)
"""Those that `migration.py` can take over."""
RESULTS_KEPT_MS = 7 * 86_400_000
"""Of an ended batch, so that a failover to an older state still finds them."""


class BatchKeys(NamedTuple):
    """Keys of one batch, in the order in which every batch script gets them as KEYS."""

    batch: str  # hash: the fields of the batch, counters, `fence_counter`, `outcome`
    queue: str  # list of ready requests: entries, see `lua/_batch.lua`
    leases: str  # sorted set: line -> time the lease ends, server milliseconds
    entries: str  # hash: line -> its entry, while leased or delayed
    fences: str  # hash: line -> fence of its newest claim
    results: str  # hash: line -> committed result, see `lua/commit.lua`
    validator: str  # string with expiry: token of the process that validates the input file
    settled: str  # list: lines in the order in which their results were committed
    delayed: str  # sorted set: line -> time from which it can be claimed again, server milliseconds
    attempts: str  # hash: line -> its failed attempts as JSON, see `attempts.py`; only of lines that have any
    claims: str  # hash: epoch of a claimer -> token and lines of its last claim
    journal: str  # hash: line -> `tokens|revision`, and `line:0`, `line:1` ... -> the tokens, see `journal.py`
    stream: str  # stream: what a flex request has produced, and that it is done; see `flex_feed.py`


class Keys:
    """Key names under one namespace."""

    def __init__(self, namespace: str) -> None:
        self.schema = f"{namespace}:schema"
        self.deployment = f"{namespace}:deployment"  # whose all this is, JSON, see `identity.py`
        self.controller = f"{namespace}:controller"  # string with expiry: cluster whose controller is at work
        self.active_batches = f"{namespace}:{{index}}:active"  # as `batches`, of those that still need the keeper
        # The same, of those that have ended -> when the keeper was done.
        self.ended_batches = f"{namespace}:{{index}}:ended"
        # Sorted sets of flex requests among them: those that are waited for -> when their front was last heard of, and
        # those that nobody waits for any more, until they are deleted -> since when; server milliseconds.
        self.flex = f"{namespace}:{{index}}:flex"
        self.flex_over = f"{namespace}:{{index}}:flex:over"
        self.held = f"{namespace}:{{index}}:held"  # hash: batch or file -> tenant and amounts, see `lua/_ledger.lua`
        self.used = f"{namespace}:{{index}}:used"  # hash: tenant and name of a quota -> sum of the amounts
        self.due_files = f"{namespace}:{{index}}:files:due"  # sorted set: file id -> when to look at it, milliseconds
        self.api_keys = f"{namespace}:{{index}}:api_keys"  # hash: name -> record of an API key, JSON, see `api_keys.py`
        self.api_keys_version = f"{namespace}:{{index}}:api_keys:version"  # another one after each change; never goes
        self.usage = f"{namespace}:{{seen}}:usage"  # hash: model and endpoint -> what finished requests took, JSON
        self.batch_prefix = f"{namespace}:batch:"  # what `batch_hash` begins with
        self._namespace = namespace
        # What `migration.py` takes over: before there were tenants all was the default one's.
        self.batches_of_default = self.batches(DEFAULT_TENANT)
        self.files_of_default = self.files(DEFAULT_TENANT)
        self.replicas = f"{namespace}:{{capacity}}:replicas"  # set: replicas that have reported, see `harvest/board.py`
        self.report_prefix = f"{namespace}:{{capacity}}:report:"  # and a replica: its report, JSON, with expiry

    def batch(self, batch_id: str) -> BatchKeys:
        """Keys of one batch."""
        base = self.batch_hash(batch_id)
        return BatchKeys(base, *(f"{base}:{name}" for name in BatchKeys._fields[1:]))

    def batch_hash(self, batch_id: str) -> str:
        """Hash: the fields of a batch; the first of its keys."""
        return f"{self.batch_prefix}{{{batch_id}}}"

    def batches(self, tenant: str) -> str:
        """Sorted set: id of a batch of a tenant -> when it was created, milliseconds."""
        return f"{self._namespace}:{{index}}:batches" + _of_tenant(tenant)

    def files(self, tenant: str, purpose: str | None = None) -> str:
        """Sorted set: id of a file of a tenant (of this purpose only) -> when it was recorded, milliseconds."""
        purposes = f":{purpose}" if purpose else ""
        return f"{self._namespace}:{{index}}:files" + purposes + _of_tenant(tenant)

    def file(self, file_id: str) -> str:
        """Hash: the fields of a File object."""
        return f"{self._namespace}:file:{{{file_id}}}"

    def file_users(self, file_id: str) -> str:
        """Sorted set: batch that reads the file -> when it was created, milliseconds."""
        return f"{self._namespace}:file:{{{file_id}}}:users"

    def capacity(self, model: str) -> str:
        """Hash: number of a five-minute interval since the epoch -> `tokens seconds`, see `capacity_store.py`."""
        return f"{self._namespace}:{{seen}}:capacity:{model}"

    def watched(self, model: str) -> str:
        """Hash: replica -> offline tokens since its start that are in `capacity`; and `.at_ms`, `.proof`."""
        return f"{self._namespace}:{{seen}}:watched:{model}"

    def barrier(self, tag: str) -> str:
        """A short-lived key in the slot of a batch or file: what is written just before waiting for the disk."""
        return f"{self._namespace}:barrier:{{{tag}}}"


def _of_tenant(tenant: str) -> str:
    # What was there before there were tenants is the default one's, without being moved.
    return "" if tenant == DEFAULT_TENANT else f":of:{tenant}"
