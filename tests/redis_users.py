"""The user that ConServe has on a server of Redis, by the rules of cluster/redis, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import redis

RULES: Final = Path(__file__).parents[1] / "cluster" / "redis" / "valkey.conf"
PASSWORD: Final = "of-tests"

OF_TESTS: Final = ("config|get", "config|set", "scan", "memory|usage", "pttl", "ttl", "zincrby")
"""What tests do with the connection that they share with ConServe, and it does not; `tests/unit/cluster` looks."""


def read_rules(user: str = "conserve") -> list[str]:
    """What stands behind a user's name, less its password."""
    for line in RULES.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"user {user} "):
            return [rule for rule in line.split()[2:] if not rule.startswith("#")]
    raise AssertionError(f"{RULES} has no user {user}")


def add_user(url: str, *, namespace: str | None = None, extra: tuple[str, ...] = ()) -> str:
    """Has a server know ConServe's user; returns the URL with it.

    Args:
        url: Of the server, as whoever may do everything.
        namespace: Of its keys; None: of any.
        extra: Commands that it may use besides.
    """
    keys = "~*" if namespace is None else f"~{namespace}:*"
    rules = [keys if rule == "~conserve:*" else rule for rule in read_rules()]
    assert keys in rules
    with redis.Redis.from_url(url) as client:
        client.execute_command("ACL", "SETUSER", "conserve", "reset", f">{PASSWORD}", *rules, *(f"+{x}" for x in extra))
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"conserve:{PASSWORD}@{parts.netloc.rpartition('@')[2]}"))
