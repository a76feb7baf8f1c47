"""How the services answer what cannot be done: every reason as an `ApiError`."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import structlog
from redis.exceptions import RedisError

from conserve.jobs.errors import ApiError, NoPlaceError, NotDurableError, QuotaExceededError
from conserve.jobs.outages import is_outage

_log = structlog.get_logger(__name__)

_RETRY_AFTER_S = 5
_SHOWN = 80

_RETRY_QUOTA_AFTER_S = 60
_QUOTAS = {
    "requests": ("queued_requests_exceeded", "queued requests"),
    "tokens": ("tokens_in_flight_exceeded", "tokens in flight"),
    "files": ("files_exceeded", "files"),
    "bytes": ("file_bytes_exceeded", "bytes of files"),
    "batches": ("batches_exceeded", "batches that have not ended"),
    "flex": ("waiting_flex_exceeded", "flex requests that wait"),
}

_Parameters = ParamSpec("_Parameters")
_Answer = TypeVar("_Answer")


def answers_unavailable(
    method: Callable[_Parameters, Awaitable[_Answer]],
) -> Callable[_Parameters, Awaitable[_Answer]]:
    """Turns outages of Redis and of the file storage into 503 with `Retry-After`."""

    @functools.wraps(method)
    async def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Answer:
        try:
            return await method(*args, **kwargs)
        except (RedisError, NotDurableError) as error:
            if isinstance(error, RedisError) and not is_outage(error):
                raise
            _log.warning("batch queue unavailable", reason=str(error))
            raise _unavailable("The batch queue is not available at the moment. Try again later.") from error
        except OSError as error:
            raise storage_unavailable(error) from error

    return call


def storage_unavailable(error: OSError) -> ApiError:
    """503: the storage of files is away or full, or the place where they are put together."""
    _log.warning("file storage unavailable", reason=str(error))
    return _unavailable("The file storage is not available at the moment. Try again later.")


def invalid(message: str, param: str, code: str | None = "invalid_value") -> ApiError:
    """400: a parameter has a value that is not allowed."""
    return ApiError(400, message, param=param, code=code)


def no_file(file_id: str, param: str = "id") -> ApiError:
    """404: there is no such file."""
    return ApiError(404, f"No such File object: {file_id[:_SHOWN]}", param=param, code="not_found")


def no_batch(batch_id: str, param: str = "batch_id") -> ApiError:
    """404: there is no such batch."""
    return ApiError(404, f"No batch found with id '{batch_id[:_SHOWN]}'.", param=param, code="not_found")


def file_too_large(max_bytes: int) -> ApiError:
    """413: an upload is too long."""
    return ApiError(413, f"The file is larger than {max_bytes} bytes, which is the limit.", param="file")


def window_too_short(message: str, earliest: str | None) -> ApiError:
    """400: a batch does not fit its completion window; `earliest` is the shortest one that would do, if any does."""
    return ApiError(
        400,
        message,
        param="completion_window",
        code="window_too_short",
        details={"earliest_completion_window": earliest},
    )


def overloaded(message: str, code: str, retry_after_s: int) -> ApiError:
    """429: too many of something at once; later there may be room."""
    return ApiError(429, message, error_type="rate_limit_error", code=code, retry_after_s=retry_after_s)


def over_quota(error: QuotaExceededError, param: str) -> ApiError:
    """429: the tenant would have more than its quota. What is queued gets less by waiting, files do not."""
    code, what = _QUOTAS[error.name]
    message = f"Your limit is {error.limit} {what}: you have {error.used}, and this takes {error.asked}."
    is_passing = error.name not in ("files", "bytes") and error.asked <= error.limit
    return ApiError(
        429,
        message + ("" if is_passing else " Waiting does not help."),
        error_type="rate_limit_error",
        param=param,
        code=code,
        retry_after_s=_RETRY_QUOTA_AFTER_S if is_passing else None,
    )


def no_place(error: NoPlaceError, what: str, code: str, own_code: str, retry_after_s: int) -> ApiError:
    """429: as many as allowed are open, of all tenants or of the caller's."""
    if error.is_own:
        return overloaded(f"Your limit is {error.limit} {what}: that many are open.", own_code, retry_after_s)
    return overloaded(f"{error.limit} {what} are open, which is the limit.", code, retry_after_s)


def check_limit(limit: int, most: int) -> None:
    """Refuses a page that is too short or too long.

    Raises:
        ApiError: it is.
    """
    if not 1 <= limit <= most:
        raise invalid(f"'limit' must be between 1 and {most}.", "limit")


def _unavailable(message: str) -> ApiError:
    return ApiError(503, message, error_type="server_error", code="service_unavailable", retry_after_s=_RETRY_AFTER_S)
