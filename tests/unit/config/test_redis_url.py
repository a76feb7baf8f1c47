from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conserve.config import Settings, SettingsError, load_settings
from conserve.config.redis_url import check_redis_url, describe_server, drop_password, find_password

SECRET = "s3cr3t-w0rd"


@pytest.mark.parametrize(
    ("url", "password", "without", "where"),
    [
        ("embedded", None, "embedded", "embedded"),
        ("redis://h:6379/0", None, "redis://h:6379/0", "h:6379"),
        ("redis://:p%2Fq@h:6379/0", "p/q", "redis://h:6379/0", "h:6379"),
        ("rediss://me:p@h/2?ssl_ca_certs=/c", "p", "rediss://me@h/2?ssl_ca_certs=/c", "h"),
        ("redis://me@h", None, "redis://me@h", "h"),
        ("redis://:p@[::1]:6379", "p", "redis://[::1]:6379", "[::1]:6379"),
        ("unix:///run/r.sock?db=1", None, "unix:///run/r.sock?db=1", "/run/r.sock"),
        ("unix://me:p@/run/r.sock", "p", "unix://me@/run/r.sock", "/run/r.sock"),
    ],
)
def test_parts_of_a_url(url: str, password: str | None, without: str, where: str) -> None:
    assert check_redis_url(url) == url
    assert (find_password(url), drop_password(url), describe_server(url)) == (password, without, where)


@pytest.mark.parametrize(
    ("args", "environ", "said"),
    [
        ({"redis_url": f"redis://:{SECRET}@h"}, "", "no password in the configuration"),
        ({"redis_url": f"redis://[:{SECRET}@h"}, "", "no password in the configuration"),
        ({}, f"redis://:{SECRET}/x@h:1", "written as %2F"),
        ({}, f"redis://:{SECRET}#x@h:1", "written as %2F"),
        ({}, f"redis//:{SECRET}@h:1", "start with redis://"),
        ({}, f"redis://h:1?password={SECRET}", "must not have `password`"),
        ({"redis_password_file": "/f"}, f"redis://:{SECRET}@h:1", "is in `redis_url`, too"),
        ({"redis_password_file": "/f"}, "embedded", "the embedded server has none"),
    ],
)
def test_a_wrong_url_is_refused_and_not_shown(args: dict[str, Any], environ: str, said: str) -> None:
    with pytest.raises(SettingsError, match="jobs") as refused:
        load_settings({"jobs": args}, {"CONSERVE_JOBS__REDIS_URL": environ} if environ else {})
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "args",
    [
        {"jobs": {"files_url": 5, "namespace": f"me:{SECRET}@x"}},
        {"engine": {"extra_args": [{"hf_token": SECRET}]}},
        {"engine": {"extra_args": SECRET}},
        {"tracing": {"otlp_endpoint": f"http://me:{SECRET}@collector"}},
    ],
)
def test_what_may_hold_a_secret_is_not_shown(args: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(args, {})
    assert SECRET not in str(refused.value)


def test_a_password_is_neither_printed_nor_passed_on() -> None:
    settings = load_settings({}, {"CONSERVE_JOBS__REDIS_URL": f"redis://me:{SECRET}@h:1/2"})
    assert SECRET not in f"{settings!r} {settings} {settings.to_args()}"
    passed = Settings.model_validate(settings.to_args())
    assert passed.jobs.redis_url == "redis://me@h:1/2"
    named = settings.with_password_file(Path("/f"))
    assert (named.jobs.redis_url, named.jobs.redis_password_file) == ("redis://me@h:1/2", Path("/f"))
    assert named.with_password_file(Path("/g")) is named
