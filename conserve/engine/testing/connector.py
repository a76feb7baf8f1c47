"""A KV connector as a user may bring one: it loads the KV of some prompts from elsewhere while the engine goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata

from conserve.engine.vllm_compat import Request, SchedulerOutput

REMOTE_TOKEN = 999
"""The KV of prompts that begin with this token is there to load, but for their last block."""


@dataclass(frozen=True)
class Load:
    """KV that the worker is to load: of these tokens, into these blocks."""

    request_id: str
    tokens: list[int]
    blocks: list[int]


@dataclass
class Loads(KVConnectorMetadata):
    """What travels with a batch."""

    new: list[Load] = field(default_factory=list)


class FakeConnector(KVConnectorBase_V1):
    """The scheduler's half; `FakeWorker` is the other one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._block_size = self._vllm_config.cache_config.block_size
        self._new: list[Load] = []

    @property
    def requires_kv_delivery(self) -> bool:
        """No: what is loaded is a copy."""
        return False

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens to load beyond those in the prefix cache, while the engine goes on."""
        tokens = request.prompt_token_ids
        if not tokens or tokens[0] != REMOTE_TOKEN:
            return 0, False
        more = (len(tokens) - 1) // self._block_size * self._block_size - num_computed_tokens
        return max(more, 0), more > 0

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        """The request has its blocks."""
        if num_external_tokens:
            (block_ids,) = blocks.get_block_ids()
            end = (len(request.prompt_token_ids) - 1) // self._block_size * self._block_size
            self._new.append(Load(request.request_id, list(request.prompt_token_ids[:end]), list(block_ids)))

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Loads:
        """What the worker is told."""
        loads, self._new = Loads(self._new), []
        return loads

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """The worker's; `FakeWorker` does it."""
        raise NotImplementedError

    wait_for_layer_load = save_kv_layer = wait_for_save = start_load_kv


def use_fake_connector() -> KVTransferConfig:
    """The setting that puts it into an engine."""
    return KVTransferConfig(kv_connector="FakeConnector", kv_connector_module_path=__name__, kv_role="kv_both")
