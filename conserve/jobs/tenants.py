"""Who a client is: the tenant that its API key leads to."""

from __future__ import annotations

from collections.abc import Mapping

from conserve.config import DEFAULT_TENANT, TenantSettings, digest_key
from conserve.jobs.errors import ApiError
from conserve.jobs.ledger import Limits, limits_of

_SCHEME = "bearer "


class TenantDirectory:
    """The tenants of the settings.

    Args:
        tenants: By name. Without any key in them everybody is the default tenant.
    """

    def __init__(self, tenants: Mapping[str, TenantSettings]) -> None:
        self._names = {key.get_secret_value(): name for name, one in tenants.items() for key in one.api_keys}
        self._limits = {name: limits_of(tenant) for name, tenant in tenants.items()}

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
        return self._limits.get(tenant, Limits())


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")
