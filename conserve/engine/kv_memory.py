"""The KV cache of a worker as bytes: for each block what all layers have in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

COPYABLE: Final = (FullAttentionSpec, MLAAttentionSpec)
"""Kinds of KV cache in which a request has all of its blocks until it ends; not those that are derived from them."""


class KvRegion(NamedTuple):
    """Where layers of the same shape are in the allocation that holds the whole KV cache.

    Attributes:
        layers: How many.
        page_bytes: What one layer has in one block.
        offset, layer_stride, block_stride: Layer l of block b begins at `offset + l * layer_stride + b * block_stride`.
    """

    layers: int
    page_bytes: int
    offset: int
    layer_stride: int
    block_stride: int


def view_blocks(allocation: torch.Tensor, regions: Sequence[KvRegion], blocks: int) -> list[torch.Tensor]:
    """Views of the allocation, one a region: bytes of shape (blocks, layers, page).

    Args:
        allocation: Any view of it.
        regions: What is in it.
        blocks: How many.
    """
    raw = torch.empty(0, dtype=torch.uint8, device=allocation.device).set_(allocation.untyped_storage())
    return [
        raw.as_strided(
            (blocks, region.layers, region.page_bytes), (region.block_stride, region.layer_stride, 1), region.offset
        )
        for region in regions
    ]


def count_slots(host_kv_bytes: int, kv_cache_config: Any, ranks: int) -> int:
    """Blocks that so much host memory holds, of all workers together."""
    return int(host_kv_bytes // (ranks * count_rank_bytes(kv_cache_config)))


def count_rank_bytes(kv_cache_config: Any) -> int:
    """Bytes of one block of one worker, of all layers."""
    groups = kv_cache_config.kv_cache_groups
    return sum(len(group.layer_names) * int(group.kv_cache_spec.page_size_bytes) for group in groups)


def explain_kind(kv_cache_config: Any) -> str | None:
    """Why blocks of such a KV cache are not copied; None if they are."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        return f"the layers have {len(groups)} kinds of KV cache"
    kind = type(groups[0].kv_cache_spec)
    if kind not in COPYABLE:
        return f"the KV cache is a {kind.__name__}: of it a request may lose blocks while it runs, or layers may differ"
    return None


def list_regions(kv_cache_config: Any, layout: Any) -> list[KvRegion]:
    """The regions of a KV cache that vLLM 0.32 allocates from this configuration, in this layout.

    Raises:
        ValueError: it is of a kind whose blocks are not copied; says which.
    """
    if (reason := explain_kind(kv_cache_config)) is not None:
        raise ValueError(reason)
    if not layout.is_block_compact:
        raise ValueError(f"the KV cache has the layout {layout.name}, where what a layer has in a block is in pieces")
    spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
    if any(tensor.host_resident for tensor in kv_cache_config.kv_cache_tensors):
        raise ValueError("the KV cache is in host memory")
    return [
        KvRegion(len(tensor.layers), int(spec.page_size_bytes), tensor.offset, tensor.layer_stride, tensor.block_stride)
        for tensor in kv_cache_config.kv_cache_tensors
    ]
