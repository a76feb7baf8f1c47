"""Which Ray cluster this is. Apart from `ray_compat`, whose imports take the controller seconds at each start."""

from __future__ import annotations


def find_cluster() -> str | None:
    """A name of the running Ray cluster that no other has, the same on all its nodes; None: there is none."""
    import ray  # Not needed where the name is given.

    return ray.get_runtime_context().get_session_name() if ray.is_initialized() else None
