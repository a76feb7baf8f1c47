"""Places for what is open at once."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from conserve.jobs.errors import NoPlaceError
from conserve.jobs.places import Places


def test_there_are_so_many_for_all_and_so_many_for_each() -> None:
    places = Places(3, {"a": 2, "b": None}.get)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(places.take("a"))
        with pytest.raises(NoPlaceError) as own:
            stack.enter_context(places.take("a"))
        assert (own.value.limit, own.value.is_own) == (2, True)
        with places.take("b"):
            for tenant in ("b", "c"):
                with pytest.raises(NoPlaceError) as full:
                    stack.enter_context(places.take(tenant))
                assert (full.value.limit, full.value.is_own) == (3, False)
        stack.enter_context(places.take("c"))
        assert places.taken == 3
    assert places.taken == 0
