"""Routes that need to know whose client calls, and whether it may."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import ray
from fastapi import Request

from conserve.jobs.api_keys import Scope
from conserve.jobs.file_service import FileService
from conserve.jobs.flex import guess_tokens
from conserve.jobs.tenants import Caller, TenantDirectory
from conserve.policy.request_size import EXPECTED_OUTPUT_TOKENS, guess_request_tokens

Service = TypeVar("Service", bound=FileService)


def as_tenant(get_service: Callable[[], Service]) -> Callable[[Request], Awaitable[Service]]:
    """A dependency of routes of offline work: the service as the tenant sees it that the key of the request leads to.

    `get_service` is called for each request, so the service may be made after the routes.
    """

    async def find(request: Request) -> Service:  # A plain function would run in another thread.
        service = get_service()
        return service.for_tenant(admit(service.tenants, request, Scope.OFFLINE).tenant)

    return find


def admit(tenants: TenantDirectory, request: Request, scope: Scope | None, tokens: float = 0) -> Caller:
    """Finds out who sends a request, and counts it.

    Args:
        tenants: Who may be whose client.
        request: What is sent.
        scope: What its key has to be good for; None: anything.
        tokens: About so many the model will work on.

    Raises:
        ApiError: as `TenantDirectory.admit`.
    """
    authorization = request.headers.get("authorization")
    return tenants.admit(authorization, scope, tokens, is_local=is_local(find_peer(request)))


async def guess_model_tokens(body: Any, request: Request) -> int:
    """About so many tokens an online request takes, from its length and what it may produce."""
    length_bytes = len(await request.body())
    fields = vars(body)
    if "max_tokens" not in fields:  # Embeddings produce none.
        return guess_request_tokens(1, length_bytes) - EXPECTED_OUTPUT_TOKENS
    return guess_tokens(fields, length_bytes)


def find_peer(request: Request) -> str | None:
    """The address that a request comes from, as far as is known."""
    return request.client.host if request.client is not None else None


def is_local(peer: str | None) -> bool:
    """Whether an address is one of this machine. Of a caller whose address is not known nothing is known."""
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback) or str(mapped or address) == _own_address()


@functools.cache
def _own_address() -> str | None:
    """Where the proxy on this machine calls from, if it does not from loopback."""
    return str(ray.util.get_node_ip_address()) if ray.is_initialized() else None
