from __future__ import annotations

import hashlib
from typing import Any

import pytest

from conserve.config import DEFAULT_TENANT, Settings, SettingsError, digest_key, load_settings
from conserve.jobs.errors import ApiError
from conserve.jobs.ledger import Limits
from conserve.jobs.tenants import TenantDirectory, find_tenants

SECRET = "sk-very-secret"
DIGEST = f"sha256:{hashlib.sha256(SECRET.encode()).hexdigest()}"


def identify(settings: Settings, authorization: str | None) -> str:
    return TenantDirectory(settings.tenants).admit(authorization).tenant


@pytest.mark.parametrize("key", [SECRET, DIGEST])
def test_a_key_leads_to_its_tenant_however_it_is_given(key: str) -> None:
    settings = load_settings({"tenants": {"a": {"api_keys": ["other", key]}, "b": {"api_keys": ["sk-b"]}}}, {})
    assert identify(settings, f"Bearer {SECRET}") == "a"
    assert identify(settings, f"bearer  {SECRET} ") == "a"
    assert identify(settings, "Bearer sk-b") == "b"
    for wrong in (None, "", "Bearer", "Bearer ", f"Basic {SECRET}", f"Bearer {DIGEST}", f"Bearer {SECRET}x"):
        with pytest.raises(ApiError) as refused:
            identify(settings, wrong)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
        assert SECRET not in str(refused.value.body())


def test_without_keys_everybody_is_the_default_tenant() -> None:
    for tenants in ({}, {"default": {"max_files": 3}}):
        settings = load_settings({"tenants": tenants}, {})
        assert identify(settings, None) == identify(settings, "Bearer x") == DEFAULT_TENANT


def test_a_key_is_nowhere_to_be_seen() -> None:
    settings = load_settings({"tenants": {"a": {"api_keys": [SECRET]}}}, {})
    for text in (repr(settings), str(settings), str(settings.to_args()), settings.model_dump_json()):
        assert SECRET not in text
    assert DIGEST not in repr(settings)
    assert settings.to_args()["tenants"]["a"]["api_keys"] == [DIGEST] == [digest_key(SECRET)]
    assert Settings.model_validate(settings.to_args()) == settings


@pytest.mark.parametrize(
    ("tenants", "parts"),
    [
        ({"A": {"api_keys": [SECRET]}}, ["tenants", "'A'", "lower-case"]),
        ({"a": {"api_keys": [SECRET]}, "b": {"api_keys": [DIGEST]}}, ["`a` and `b`", "in common"]),
        ({"a": {"api_keys": [SECRET], "weight": 0}}, ["tenants.a.weight", "greater than 0", "(it is 0)"]),
        ({"a": {"api_keys": [SECRET], "max_files": 0}}, ["tenants.a.max_files", "greater than or equal to 1"]),
        ({"a": {"api_keys": [SECRET], "quota": 1}}, ["tenants.a.quota", "no such setting"]),
        ({"a": {"api_keys": [""]}}, ["tenants.a.api_keys.0", "empty"]),
        ({"a": {"api_keys": ["sha256:" + SECRET]}}, ["tenants.a.api_keys.0", "64 hexadecimal"]),
        ({"a": {"api_keys": SECRET}}, ["tenants.a.api_keys", "list"]),
        ({"a": {"api_keys": [[SECRET]]}}, ["tenants.a.api_keys.0", "string"]),
        ({"a": SECRET}, ["tenants.a"]),
        (SECRET, ["tenants"]),
    ],
)
def test_a_wrong_setting_is_refused_without_naming_a_key(tenants: Any, parts: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({"tenants": tenants}, {})
    for part in parts:
        assert part in str(refused.value)
    assert SECRET not in str(refused.value)
    assert DIGEST.removeprefix("sha256:") not in str(refused.value)


def test_keys_may_come_from_the_environment() -> None:
    settings = load_settings({}, {"CONSERVE_TENANTS": f"{{a: {{api_keys: [{SECRET}], weight: 2.5}}}}"})
    assert settings.tenants["a"].weight == 2.5
    assert identify(settings, f"Bearer {SECRET}") == "a"


def test_quotas_are_those_of_the_settings() -> None:
    directory = TenantDirectory(
        load_settings({"tenants": {"a": {"api_keys": ["x"], "max_queued_requests": 5, "max_bytes": 7}}}, {}).tenants
    )
    assert directory.needs_keys
    assert directory.limits("a") == Limits(requests=5, bytes=7)
    assert directory.limits("unknown") == Limits()


@pytest.mark.parametrize(
    ("tenants", "of_a"),
    [
        ({"a": {"api_keys": ["x"]}}, Limits()),
        ({"a": {"api_keys": ["x"]}, "b": {"api_keys": ["y"]}}, Limits(batches=4, flex=1)),
        (
            {"a": {"api_keys": ["x"], "max_batches": 6, "max_waiting_flex": 2}, "b": {"api_keys": ["y"]}},
            Limits(batches=6, flex=2),
        ),
    ],
)
def test_one_of_several_tenants_leaves_room_for_others(tenants: dict[str, Any], of_a: Limits) -> None:
    settings = load_settings({"tenants": tenants, "jobs": {"max_active_batches": 7}, "flex": {"max_waiting": 1}}, {})
    assert find_tenants(settings).limits("a") == of_a
