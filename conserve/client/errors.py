"""What can go wrong for who uses the client. Everything it raises on its own account is a `ConServeError`."""

from __future__ import annotations

import email.utils
import time
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from conserve.client.results import Result
    from conserve.jobs.batch import Batch

_SHOWN_CHARACTERS = 300
_FIELDS = ("message", "type", "param", "code")


class ConServeError(Exception):
    """Anything of ConServe that did not work out. `is_passing` says whether the same call may succeed later."""

    is_passing = False


class UnreachableError(ConServeError):
    """Nothing answers, or a connection broke; whether the call was carried out is not known."""

    is_passing = True


class UntrustedError(ConServeError):
    """The server's certificate is not trusted here. The variable `SSL_CERT_FILE` names who is."""


class BrokenAnswerError(ConServeError):
    """What has answered is not ConServe, or an answer broke off."""


class CutOffError(BrokenAnswerError):
    """A stream has ended before its end."""

    is_passing = True


class WaitTimeoutError(ConServeError, TimeoutError):
    """A batch has not ended within the time that was given for waiting; it goes on."""


class JobFailedError(ConServeError):
    """The input file of a batch was refused, so nothing of it was run. `batch.errors` has what is wrong, by line."""

    def __init__(self, batch: Batch) -> None:
        found = batch.errors.data if batch.errors else []
        said = "; ".join(f"line {one.line}: {one.message}" if one.line else one.message for one in found[:3])
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        super().__init__(f"{batch.id} has failed: {said or 'no reason given'}{more}")
        self.batch = batch


class RequestFailedError(ConServeError):
    """One request of a batch has no answer. `result` says why."""

    def __init__(self, result: Result, reason: str) -> None:
        super().__init__(f"{result.custom_id}: {reason}")
        self.result = result


class StatusError(ConServeError):
    """ConServe, or what is in front of it, has answered a call with an error.

    Attributes:
        status_code: Of HTTP.
        message: What was said, for people.
        code: The same for programs, such as `window_too_short`; None where there is none.
        param: The field that is wrong, if it is one.
        retry_after_s: When to come back, if that was said.
        details: Further fields of the error, such as `earliest_completion_window`.
    """

    def __init__(self, response: httpx.Response) -> None:
        error = _find_error(response)
        text = " ".join(response.text.split())[:_SHOWN_CHARACTERS]
        self.status_code = response.status_code
        self.message = str(error.get("message") or text or "no reason given")
        self.code: str | None = error.get("code")
        self.param: str | None = error.get("param")
        self.retry_after_s = _read_retry_after(response)
        self.details = {
            name: value for name, value in error.items() if name not in ("message", "type", "param", "code")
        }
        self.is_passing = _is_passing(response, is_of_conserve=bool(error))
        super().__init__(f"{self.message} (HTTP {self.status_code})")


class InvalidRequestError(StatusError):
    """400, 413, 422: something about the call is not allowed."""


class AuthenticationError(StatusError):
    """401, 403: a key is needed, or this one may not."""


class NotFoundError(StatusError):
    """404: there is no such thing, or it is another tenant's."""


class ConflictError(StatusError):
    """409: that cannot be done in the state that the batch or file is in."""


class GoneError(StatusError):
    """410: what is asked for is not kept any more."""


class LimitError(StatusError):
    """429: too many at once, or a quota is used up."""


class UnavailableError(StatusError):
    """5xx: it does not work at the moment."""


_BY_STATUS: dict[int, type[StatusError]] = {
    400: InvalidRequestError,
    413: InvalidRequestError,
    422: InvalidRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    429: LimitError,
}


def make_status_error(response: httpx.Response) -> StatusError:
    """The error that an answer with a status of 400 and above is. Its body has been read."""
    kind = UnavailableError if response.status_code >= 500 else _BY_STATUS.get(response.status_code, StatusError)
    return kind(response)


def _find_error(response: httpx.Response) -> dict[str, Any]:
    """The error in OpenAI's form; empty where something else has answered, such as a proxy."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _is_passing(response: httpx.Response, *, is_of_conserve: bool) -> bool:
    if response.status_code == 429:
        return bool(response.headers.get("x-should-retry") != "false")
    if response.status_code in (502, 503, 504):
        return True
    # While the front is away or not there yet, what is in front of it answers in words of its own.
    return response.status_code in (404, 500) and not is_of_conserve


def _read_retry_after(response: httpx.Response) -> float | None:
    """`Retry-After`, which is seconds or a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
