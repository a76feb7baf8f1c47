"""URLs of Redis: what may stand in one, and how to speak of it without its password."""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qs, unquote, urlsplit, urlunsplit

EMBEDDED_REDIS = "embedded"
SCHEMES = ("redis", "rediss", "unix")
_SECRET_OPTIONS = ("password", "ssl_password")


def check_redis_url(url: str) -> str:
    """Returns it as it is. No message has any of it, since a password may stand anywhere in a URL that is wrong.

    Raises:
        ValueError: it is none, or has a password where none belongs.
    """
    if url == EMBEDDED_REDIS:
        return url
    if not url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        raise ValueError(f"must be `{EMBEDDED_REDIS}` or start with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(
            "is no URL; in a password, `/`, `#`, `?`, `@` and the like are written as %2F, %23, %3F, %40"
        ) from None
    if parts.scheme != "unix" and not parts.hostname:
        raise ValueError("names no host; in a password, `/`, `#`, `?` and the like are written as %2F, %23, %3F")
    for name in _SECRET_OPTIONS:
        if name in parse_qs(parts.query):
            raise ValueError(f"must not have `{name}` among its options")
    return url


def has_password(url: str) -> bool:
    """Whether there is a password in it; of what is no URL, whether one could be meant."""
    try:
        return bool(_split(url).password)
    except ValueError:
        return "@" in url


def find_password(url: str) -> str | None:
    """The password in it, decoded; None where there is none."""
    password = _split(url).password
    return unquote(password) if password else None


def drop_password(url: str) -> str:
    """The same without its password; the name of the user stays."""
    parts = _split(url)
    if not parts.password:
        return url
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{name}@{host}" if name else host))


def describe_server(url: str) -> str:
    """Where the server is, for people: a host and port or the path of a socket, without user, password and options."""
    parts = _split(url)
    if parts.scheme == "unix":
        return parts.path
    return parts.netloc.rpartition("@")[2] or url


def _split(url: str) -> SplitResult:
    return urlsplit("" if url == EMBEDDED_REDIS else url)
