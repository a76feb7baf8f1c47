"""The bytes of a KV block are where vLLM puts them."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheTensor
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import allocate_kv_cache

from conserve.engine.kv_memory import count_rank_bytes, count_slots, list_regions, view_blocks

BLOCKS, LAYERS = 5, 3
SPEC = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=8, dtype=torch.float32)


def make_config(*, block_outermost: bool) -> KVCacheConfig:
    page, names = SPEC.page_size_bytes, [f"layer-{number}" for number in range(LAYERS)]
    strides = (page, LAYERS * page) if block_outermost else (BLOCKS * page, page)
    tensor = KVCacheTensor(LAYERS * BLOCKS * page, names, *strides)
    return KVCacheConfig(BLOCKS, kv_cache_tensors=[tensor], kv_cache_groups=[KVCacheGroupSpec(names, SPEC)])


@pytest.mark.parametrize(
    ("layout", "block_outermost"),
    [
        (KVCacheLayout.LBHNC, False),
        (KVCacheLayout.LBNHC, False),
        (KVCacheLayout.BLHNC, True),
        (KVCacheLayout.BLNHC, True),
    ],
)
def test_a_block_has_the_bytes_of_all_layers_and_no_others(layout: KVCacheLayout, block_outermost: bool) -> None:
    config = make_config(block_outermost=block_outermost)
    caches = allocate_kv_cache(config, torch.device("cpu"), layout)
    assert len(caches) == LAYERS
    for number, cache in enumerate(caches.values()):
        for block in range(BLOCKS):
            cache.view(torch.int8)[block].fill_(10 * block + number)
    (view,) = view_blocks(next(iter(caches.values())), list_regions(config, layout), BLOCKS)
    assert view.shape == (BLOCKS, LAYERS, SPEC.page_size_bytes)
    for block in range(BLOCKS):
        for number in range(LAYERS):
            assert view[block, number].unique().tolist() == [10 * block + number]
    assert count_rank_bytes(config) == view[0].numel()
    assert count_slots(10 * view[0].numel() + 1, config, ranks=1) == 10
    assert count_slots(10 * view[0].numel(), config, ranks=2) == 5


def test_a_layout_with_blocks_in_pieces_is_refused() -> None:
    with pytest.raises(ValueError, match="LHBNC"):
        list_regions(make_config(block_outermost=False), KVCacheLayout.LHBNC)


def test_several_kinds_of_kv_cache_are_refused() -> None:
    config = make_config(block_outermost=False)
    config.kv_cache_groups = [*config.kv_cache_groups, *config.kv_cache_groups]
    with pytest.raises(ValueError, match="2 kinds of KV cache"):
        list_regions(config, KVCacheLayout.LBHNC)


def test_vllm_describes_it_as_we_take_it() -> None:
    names = {field.name for field in fields(KVCacheTensor)}
    wanted = {"layers", "layer_stride", "block_stride", "offset", "host_resident"}
    assert wanted <= names, f"vLLM's KVCacheTensor has no {', '.join(wanted - names)} any more"
