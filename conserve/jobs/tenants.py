"""Who a client is: the tenant that its API key leads to."""

from __future__ import annotations

from collections.abc import Mapping

from conserve.config import DEFAULT_TENANT, Settings, TenantSettings, digest_key
from conserve.jobs.errors import ApiError
from conserve.jobs.ledger import NO_LIMITS, Limits, limits_of
from conserve.jobs.places import Places

_SCHEME = "bearer "


class TenantDirectory:
    """The tenants of the settings.

    Args:
        tenants: By name. Without any key in them everybody is the default tenant.
        shared: What all of them may have together. Where several have keys, none may have more than half of it, unless
            its settings say how much.
    """

    def __init__(self, tenants: Mapping[str, TenantSettings], shared: Limits = NO_LIMITS) -> None:
        self._tenants = tenants
        self._names = {key.get_secret_value(): name for name, one in tenants.items() for key in one.api_keys}
        self._limits = {name: self._limit(limits_of(tenant), shared) for name, tenant in tenants.items()}

    @property
    def needs_keys(self) -> bool:
        """Whether a client has to name a key."""
        return bool(self._names)

    def identify(self, authorization: str | None) -> str:
        """The tenant of an HTTP request.

        Args:
            authorization: Its header of that name; None: it has none.

        Raises:
            ApiError: 401, it names no key, or an unknown one. What it has named is not repeated.
        """
        if not self._names:
            return DEFAULT_TENANT
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise _unauthorized("No API key was provided. Send it in the header 'Authorization: Bearer YOUR_KEY'.")
        # Digests are looked up, so how long that takes says nothing about a key.
        tenant = self._names.get(digest_key(authorization[len(_SCHEME) :].strip()))
        if tenant is None:
            raise _unauthorized("The API key is not valid here.")
        return tenant

    def limits(self, tenant: str) -> Limits:
        """What a tenant may have at once."""
        return self._limits.get(tenant, NO_LIMITS)

    def result_streams(self, most: int) -> Places:
        """Places for streams of results, so many for all tenants."""
        own = {name: tenant.max_result_streams for name, tenant in self._tenants.items()}
        return Places(most, {name: self._share(limit, most) for name, limit in own.items()})

    def uploads(self, most: int) -> Places:
        """Places for uploads, so many for all tenants."""
        own = {name: tenant.max_uploads for name, tenant in self._tenants.items()}
        return Places(most, {name: self._share(limit, most) for name, limit in own.items()})

    def console_streams(self, most: int) -> Places:
        """Places for streams of events, so many for all tenants."""
        return Places(most, {name: self._share(None, most) for name in self._tenants})

    def _limit(self, own: Limits, shared: Limits) -> Limits:
        return Limits(*(self._share(limit, most) for limit, most in zip(own, shared, strict=True)))

    def _share(self, own: int | None, most: int | None) -> int | None:
        is_alone = len(set(self._names.values())) < 2
        return own if own is not None or most is None or is_alone else (most + 1) // 2


def find_tenants(settings: Settings) -> TenantDirectory:
    """The tenants of an installation."""
    shared = Limits(batches=settings.jobs.max_active_batches, flex=settings.flex.max_waiting)
    return TenantDirectory(settings.tenants, shared)


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")
