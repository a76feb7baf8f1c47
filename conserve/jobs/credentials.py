"""The password of Redis, out of its file."""

from __future__ import annotations

from typing import Any

from conserve.config import JobsSettings
from conserve.jobs.errors import UnsuitableServerError


def read_credentials(jobs: JobsSettings) -> dict[str, Any]:
    """Arguments of a Redis client, beside its URL: the password, where a file has it. Read anew at each connect.

    Raises:
        UnsuitableServerError: the file cannot be read, or is empty.
    """
    path = jobs.redis_password_file
    if path is None:
        return {}
    try:
        password = path.read_text(encoding="utf-8").strip("\r\n")
    except OSError as error:
        raise UnsuitableServerError(f"`jobs.redis_password_file`: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UnsuitableServerError(f"`jobs.redis_password_file`: {path} is no text") from None
    if not password or "\n" in password:
        raise UnsuitableServerError(f"`jobs.redis_password_file`: {path} must have one line, the password")
    return {"password": password}
