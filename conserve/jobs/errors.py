"""Errors of the jobs package; `ApiError` is what clients get, in the error format of the OpenAI API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """A refused call of the Files or Batch API.

    `body()` is the JSON body: https://platform.openai.com/docs/guides/error-codes/api-errors. It has further fields,
    `details`, where a program is to read more than the code.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = _printable(message)
        self.type = error_type
        self.param = None if param is None else _printable(param)
        self.code = code
        self.retry_after_s = retry_after_s
        self.details = dict(details or {})

    def body(self) -> dict[str, Any]:
        """The body of the HTTP answer."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | self.details}

    def headers(self) -> dict[str, str]:
        """Headers of the HTTP answer besides its content type."""
        if self.retry_after_s is not None:
            return {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        # What OpenAI's clients ask before they try a 429 again by themselves.
        return {"x-should-retry": "false"} if self.status == 429 else {}


def _printable(text: str) -> str:
    """Half surrogate pairs, which a client's JSON may hold, cannot be sent back as they are."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class UnsuitableServerError(RuntimeError):
    """The Redis server cannot be used: too old, in cluster mode, closed to us, or holding other data.

    That is data of another schema version, or of another deployment. Its password may be missing here, too.
    """


class NotDurableError(RuntimeError):
    """The server did not confirm in time that a write is on its disk. The caller should not acknowledge it."""


class EmbeddedServerError(RuntimeError):
    """The embedded Valkey server did not start, or did not stop. The message says where its log is."""


class FileTooLargeError(ValueError):
    """An upload is longer than allowed."""


class ValidatorReplacedError(RuntimeError):
    """Another process validates this batch, or the batch is not to be validated any more."""


class BatchEndedError(RuntimeError):
    """The batch is not in a state in which that can be done to it. `status` is the one it has."""

    def __init__(self, batch_id: str, status: str, action: str = "cancel") -> None:
        super().__init__(f"Cannot {action} batch {batch_id} with status '{status}'.")
        self.batch_id = batch_id
        self.status = status


class TooManyBatchesError(RuntimeError):
    """As many batches as allowed are active."""


class QuotaExceededError(RuntimeError):
    """A tenant would have more than it may: of `name` (as in `ledger.Holding`) it has `used` and asks for `asked`."""

    def __init__(self, name: str, limit: int, used: int, asked: int) -> None:
        super().__init__(f"the quota of {limit} {name}: {used} are in use, and this takes {asked}")
        self.name = name
        self.limit = limit
        self.used = used
        self.asked = asked


class TooManyWaitingError(RuntimeError):
    """As many flex requests as allowed are waiting, or wait to be deleted."""


class NoPlaceError(RuntimeError):
    """As many as allowed are open: of all tenants, or (`is_own`) of this one."""

    def __init__(self, limit: int, *, is_own: bool) -> None:
        super().__init__(f"{limit} are open, which is the limit{' of this tenant' if is_own else ''}")
        self.limit = limit
        self.is_own = is_own
