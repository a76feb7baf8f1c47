"""ConServe: serves interactive LLM requests and harvests the idle capacity of the same engines for batch work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conserve.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand only: every program of ours imports this package, and few of them want a client.
    if name in ("AsyncClient", "Client"):
        import conserve.client

        return getattr(conserve.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
