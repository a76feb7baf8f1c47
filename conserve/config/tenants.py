"""Settings of tenants, who share harvested tokens, and of requests that wait for such tokens (`service_tier: flex`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr

from conserve.config.section import Section

DEFAULT_TENANT = "default"
"""Whose everything is where no keys are set, and what was there before any were."""

_DIGEST = "sha256:"
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Names of tenants and of keys."""


def digest_key(key: str) -> str:
    """An API key as settings keep it: `sha256:` and 64 hexadecimal digits."""
    return _DIGEST + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _to_digest(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text:
        raise ValueError("an API key must not be empty")
    if not text.startswith(_DIGEST):
        return SecretStr(digest_key(text))
    if re.fullmatch(r"[0-9a-f]{64}", text.removeprefix(_DIGEST)) is None:
        raise ValueError(f"after `{_DIGEST}` there must be 64 hexadecimal digits, in lower case")
    return key


# The settings travel as text from `conserve up` to the application; a key itself is nowhere in them.
ApiKey = Annotated[
    SecretStr, AfterValidator(_to_digest), PlainSerializer(lambda key: key.get_secret_value(), return_type=str)
]


class TenantSettings(Section):
    """A tenant: its keys, its share of harvested tokens, and how much it may have here at once."""

    api_keys: list[ApiKey] = Field(
        default_factory=list,
        max_length=1_000,
        description="Keys of its that are set here, beside those of `conserve keys create`: each as it is, or as "
        "`sha256:` and the hexadecimal SHA-256 of it.",
    )
    weight: float = Field(
        1.0, gt=0, le=1_000, description="Its share of harvested tokens, beside the weights of the others with work."
    )
    max_queued_requests: int | None = Field(
        None, ge=1, description="Requests of its batches and flex requests that are accepted and not done."
    )
    max_tokens_in_flight: int | None = Field(
        None, ge=1, description="Tokens of those requests, prompt and output, as far as can be estimated."
    )
    max_files: int | None = Field(None, ge=1, description="Files that it has here, output and error files included.")
    max_bytes: int | None = Field(None, ge=1, description="Bytes of those files.")
    max_batches: int | None = Field(
        None,
        ge=1,
        description="Batches not yet ended; by default half of `jobs.max_active_batches`, if others are here.",
    )
    max_waiting_flex: int | None = Field(
        None, ge=1, description="Flex requests that wait; by default half of `flex.max_waiting`, if others are here."
    )
    max_result_streams: int | None = Field(
        None,
        ge=1,
        description="Open streams of results; by default half of `jobs.max_result_streams`, if others are here.",
    )
    max_uploads: int | None = Field(
        None, ge=1, description="Uploads at once; by default half of `jobs.max_uploads`, if others are here."
    )


class FlexSettings(Section):
    """Requests of chat and completions with `service_tier: flex`: they wait for harvested capacity."""

    max_waiting: int = Field(256, ge=0, description="How many may wait at once; a further one is refused (429).")
    wait_s: int = Field(600, ge=1, le=43_200, description="How long one may take, at most; then it is given up (408).")


def check_tenants(tenants: Mapping[str, TenantSettings]) -> None:
    """Refuses names that cannot be, and a key of two tenants.

    Raises:
        ValueError: what is wrong, without naming a key.
    """
    owners: dict[str, str] = {}
    for name, tenant in tenants.items():
        if NAME_PATTERN.fullmatch(name) is None:
            raise ValueError(
                f"{name[:80]!r} is no name for a tenant: at most 64 lower-case letters, digits, `_` and `-`, a letter "
                "or digit first"
            )
        for key in tenant.api_keys:
            other = owners.setdefault(key.get_secret_value(), name)
            if other != name:
                raise ValueError(f"tenants `{other}` and `{name}` have a key in common")
