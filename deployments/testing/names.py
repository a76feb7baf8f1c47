"""Names that the application and those who kill in it share; to be had without an import of Ray."""

from __future__ import annotations

from typing import Final

APPLICATION: Final = "light"
REPLICA: Final = "LightReplica"
FRONT: Final = "LightFront"
CONTROLLER: Final = "Controller"
ENGINE_RESOURCE: Final = "engine"
"""A replica takes one of a node."""
ONLINE_LOG: Final = "online.log"
"""Which process has begun which online request, and completed it; in the state folder."""


def name_actor(deployment: str) -> str:
    """How Ray calls the processes of a deployment."""
    return f"ServeReplica:{APPLICATION}:{deployment}"


SERVE_CONTROLLER: Final = "ServeController"
