"""A KV connector as a user may bring one: it keeps the KV of prompts in a folder, one file for each full block."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

Copies = list[tuple[str, int]]
"""Names of files, and the KV blocks they come from or go to."""


@dataclass
class FolderMetadata(KVConnectorMetadata):
    """What travels with a batch.

    Attributes:
        loads: To be done before the batch runs.
        late_loads: The same, by the id of the request that waits for them while the engine goes on.
        saves: To be done after the batch has run.
    """

    loads: Copies = field(default_factory=list)
    late_loads: dict[str, Copies] = field(default_factory=dict)
    saves: Copies = field(default_factory=list)


class FolderConnector(KVConnectorBase_V1):
    """Loads at once for prompts of even length, and while the engine goes on for the others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._folder = Path(self._kv_transfer_config.get_from_extra_config("folder", None))
        self._block_size: int = self._vllm_config.cache_config.block_size
        self._prompts: dict[str, list[int]] = {}
        self._block_ids: dict[str, list[int]] = {}
        self._matched_at: dict[str, int] = {}
        self._next = FolderMetadata()
        self._kv_caches: dict[str, torch.Tensor] = {}
        self._arrived: set[str] = set()

    # The scheduler's half.

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        prompt = request.prompt_token_ids
        first = num_computed_tokens // self._block_size
        end = first
        while (end + 1) * self._block_size < len(prompt) and (self._folder / self._name(prompt, end)).exists():
            end += 1
        self._matched_at[request.request_id] = first
        return (end - first) * self._block_size, end > first and len(prompt) % 2 == 1

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        prompt = list(request.prompt_token_ids)
        self._prompts[request.request_id] = prompt
        if not num_external_tokens:
            return
        first = self._matched_at[request.request_id]
        block_ids = blocks.get_block_ids()[0]
        numbers = range(first, first + num_external_tokens // self._block_size)
        copies = [(self._name(prompt, number), block_ids[number]) for number in numbers]
        if len(prompt) % 2 == 1:
            self._next.late_loads[request.request_id] = copies
        else:
            self._next.loads += copies

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> FolderMetadata:
        for request_id in scheduler_output.finished_req_ids:
            self._block_ids.pop(request_id, None)
            self._prompts.pop(request_id, None)
        for new in scheduler_output.scheduled_new_reqs:
            self._block_ids[new.req_id] = list(new.block_ids[0])
            self._save(scheduler_output, new.req_id, new.num_computed_tokens)
        cached = scheduler_output.scheduled_cached_reqs
        for request_id, block_ids, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if request_id in cached.resumed_req_ids:
                self._block_ids[request_id] = []
            self._block_ids[request_id] += block_ids[0] if block_ids else []
            self._save(scheduler_output, request_id, computed)
        built, self._next = self._next, FolderMetadata()
        return built

    def _save(self, scheduler_output: SchedulerOutput, request_id: str, computed: int) -> None:
        prompt = self._prompts[request_id]
        full = min(computed + scheduler_output.num_scheduled_tokens[request_id], len(prompt)) // self._block_size
        for number in range(computed // self._block_size, full):
            self._next.saves.append((self._name(prompt, number), self._block_ids[request_id][number]))

    def _name(self, prompt: Sequence[int], number: int) -> str:
        tokens = torch.tensor(prompt[: (number + 1) * self._block_size])
        return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()

    # The worker's half.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._kv_caches = kv_caches

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        for copies in [metadata.loads, *metadata.late_loads.values()]:
            for name, block_id in copies:
                for layer, values in load_file(self._folder / name).items():
                    self._kv_caches[layer][block_id].copy_(values)
        self._arrived |= metadata.late_loads.keys()

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None: ...

    def wait_for_save(self) -> None:
        for name, block_id in self._get_connector_metadata().saves:
            partial = self._folder / f"{name}.partial"
            save_file({layer: kv[block_id].contiguous() for layer, kv in self._kv_caches.items()}, partial)
            os.replace(partial, self._folder / name)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[None, set[str]]:
        arrived, self._arrived = self._arrived, set()
        return None, arrived
