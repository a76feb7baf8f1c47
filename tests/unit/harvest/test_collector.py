"""Garbage collection in the controller's process."""

from __future__ import annotations

import gc

from conserve.harvest.collector import OBJECTS, rest_collector


def test_it_looks_seldom_at_new_objects_and_never_at_old_ones() -> None:
    before = gc.get_threshold()
    try:
        rest_collector()
        assert gc.get_threshold() == (OBJECTS, *before[1:])
        assert gc.isenabled()
        assert gc.get_freeze_count() > 1_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
