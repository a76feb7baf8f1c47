"""Who a client is, and what it may: the tenant that its API key leads to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from conserve.config import DEFAULT_TENANT, Settings, TenantSettings
from conserve.jobs.api_keys import EVERYDAY, Scope
from conserve.jobs.errors import ApiError
from conserve.jobs.key_ring import KeyEntry, KeyRing, KeysUnknownError, LimitReachedError
from conserve.jobs.ledger import NO_LIMITS, Limits, limits_of
from conserve.jobs.places import Places

_SCHEME: Final = "bearer "
_RETRY_UNKNOWN_AFTER_S: Final = 5


class Caller(NamedTuple):
    """Who calls: its tenant, and what its key is good for."""

    tenant: str
    scopes: frozenset[Scope]

    @property
    def is_admin(self) -> bool:
        """Whether it may see the status of all tenants."""
        return Scope.ADMIN in self.scopes


ANYBODY: Final = Caller(DEFAULT_TENANT, EVERYDAY)
"""Who calls where nobody needs a key."""


class TenantDirectory:
    """The tenants, by their keys.

    Args:
        tenants: By name, as in the settings. Those that only have keys in Redis are not among them.
        shared: What all of them may have together. Where several have keys, none may have more than half of it, unless
            its settings say how much.
        ring: The keys; by default those of the settings alone.
    """

    def __init__(
        self, tenants: Mapping[str, TenantSettings], shared: Limits = NO_LIMITS, ring: KeyRing | None = None
    ) -> None:
        self._tenants = tenants
        self._shared = shared
        self._ring = ring or KeyRing(tenants)

    @property
    def needs_keys(self) -> bool:
        """Whether a client has to name a key, wherever it is."""
        return self._ring.needs_keys

    def admit(
        self, authorization: str | None, scope: Scope | None = None, tokens: float = 0, *, is_local: bool = True
    ) -> Caller:
        """Finds out who calls, and counts the call.

        Args:
            authorization: The HTTP header of that name; None: it has none.
            scope: What the key has to be good for; None: anything.
            tokens: About so many the model will work on.
            is_local: Whether the call comes from this machine, as far as is known.

        Raises:
            ApiError: 401, it names no key, or one that is not known, or no longer; 403, the key is not good for that;
                429, its limit is reached; 503, which keys there are is not known. What it has named is not repeated.
        """
        entry = self._find(authorization, scope, is_local=is_local)
        if entry is None:
            return ANYBODY
        try:
            self._ring.count(entry, tokens)
        except LimitReachedError as error:
            raise _over_limit(error) from None
        return Caller(entry.tenant, entry.scopes)

    def still_admits(self, authorization: str | None, scope: Scope, *, is_local: bool = True) -> bool:
        """Whether who was admitted would be so still; counts nothing. True also where that cannot be known."""
        try:
            self._find(authorization, scope, is_local=is_local)
        except ApiError as error:
            return error.status == 503
        return True

    def _find(self, authorization: str | None, scope: Scope | None, *, is_local: bool) -> KeyEntry | None:
        """The key of a call; None where none is needed. Raises ApiError."""
        if not self._ring.needs_keys and (is_local or self._ring.is_open):
            return None
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise _unauthorized("No API key was provided. Send it in the header 'Authorization: Bearer YOUR_KEY'.")
        try:
            entry = self._ring.find(authorization[len(_SCHEME) :].strip())
        except KeysUnknownError:
            raise _keys_unknown() from None
        if entry is None:
            raise _unauthorized("The API key is not valid here.")
        if scope is not None and scope not in entry.scopes:
            message = f"The API key is not good for that: it lacks the scope '{scope}'."
            raise ApiError(403, message, code="insufficient_scope")
        return entry

    def limits(self, tenant: str) -> Limits:
        """What a tenant may have at once."""
        own = limits_of(self._tenants.get(tenant))
        return Limits(*(self._share(limit, most) for limit, most in zip(own, self._shared, strict=True)))

    def result_streams(self, most: int) -> Places:
        """Places for streams of results, so many for all tenants."""
        own = {name: tenant.max_result_streams for name, tenant in self._tenants.items()}
        return Places(most, lambda name: self._share(own.get(name), most))

    def uploads(self, most: int) -> Places:
        """Places for uploads, so many for all tenants."""
        own = {name: tenant.max_uploads for name, tenant in self._tenants.items()}
        return Places(most, lambda name: self._share(own.get(name), most))

    def console_streams(self, most: int) -> Places:
        """Places for streams of events, so many for all tenants."""
        return Places(most, lambda name: self._share(None, most))

    def _share(self, own: int | None, most: int | None) -> int | None:
        is_alone = len(self._ring.tenants) < 2
        return own if own is not None or most is None or is_alone else (most + 1) // 2


def find_tenants(settings: Settings, ring: KeyRing | None = None) -> TenantDirectory:
    """The tenants of an installation; by default with the keys in its settings alone."""
    shared = Limits(batches=settings.jobs.max_active_batches, flex=settings.flex.max_waiting)
    return TenantDirectory(settings.tenants, shared, ring or KeyRing(settings.tenants, settings.http))


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")


def _keys_unknown() -> ApiError:
    return ApiError(
        503,
        "API keys cannot be checked at the moment. Try again later.",
        error_type="server_error",
        code="keys_unavailable",
        retry_after_s=_RETRY_UNKNOWN_AFTER_S,
    )


def _over_limit(error: LimitReachedError) -> ApiError:
    return ApiError(
        429,
        f"The API key has had its {error.what} of this minute. Try again later.",
        error_type="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_s=max(1, math.ceil(error.wait_s)),
    )
