"""Routes that need to know whose client calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request

from conserve.jobs.file_service import FileService

Service = TypeVar("Service", bound=FileService)


def as_tenant(get_service: Callable[[], Service]) -> Callable[[Request], Awaitable[Service]]:
    """A dependency of routes: the service as the tenant sees it that the key of the request leads to.

    `get_service` is called for each request, so the service may be made after the routes.
    """

    async def find(request: Request) -> Service:  # A plain function would run in another thread.
        service = get_service()
        return service.for_tenant(service.tenants.identify(request.headers.get("authorization")))

    return find
