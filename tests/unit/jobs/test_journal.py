from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.jobs.journal import Journal, can_pack, pack_tokens, read_journal, unpack_tokens

LARGEST = 91**3 - 1


@given(st.lists(st.integers(0, LARGEST)))
def test_tokens_come_back_as_they_were(token_ids: list[int]) -> None:
    packed = pack_tokens(token_ids)
    assert unpack_tokens(packed) == tuple(token_ids)
    assert len(packed) == 3 * len(token_ids)
    assert packed.isascii()
    assert packed.isprintable()
    assert not set(packed) & set(' |"\\')


@given(st.lists(st.integers(0, LARGEST)), st.lists(st.integers(0, LARGEST)))
def test_parts_are_put_together_as_text(first: list[int], second: list[int]) -> None:
    assert pack_tokens(first) + pack_tokens(second) == pack_tokens([*first, *second])


@pytest.mark.parametrize(("token_id", "fits"), [(0, True), (LARGEST, True), (LARGEST + 1, False), (-1, False)])
def test_tokens_of_no_vocabulary_are_not_packed(token_id: int, fits: bool) -> None:
    assert can_pack([5, token_id]) == fits


def test_a_journal_is_read_with_its_revision() -> None:
    assert read_journal("") is None
    assert read_journal(f"abc|{pack_tokens([1, 200_000])}") == Journal("abc", (1, 200_000))
