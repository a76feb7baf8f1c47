"""Errors as gRPC statuses: the code, and details by the error model of https://cloud.google.com/apis/design/errors."""

from __future__ import annotations

from typing import Final

import grpc
import structlog
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from ray.serve.grpc_util import RayServegRPCContext

from conserve.jobs.errors import ApiError
from deployments.errors import to_api_error
from deployments.protos.conserve_pb2 import Sampling

log = structlog.get_logger(__name__)

DOMAIN: Final = "conserve"
DETAILS_KEY: Final = "grpc-status-details-bin"
"""Where https://grpc.github.io/grpc/cpp/md_doc_statuscodes.html has them; `grpc_status.rpc_status` reads them."""
LONGEST_MESSAGE_BYTES: Final = 1_000
"""It is sent twice, the second time in Base64, and clients take 8 KiB of trailers."""

_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    410: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_FIELDS: Final = {field.name: f"sampling.{field.name}" for field in Sampling.DESCRIPTOR.fields} | {
    "messages": "chat.messages",
    "top_logprobs": "sampling.logprobs",
    "response_format": "sampling.json_schema",
    "file": "requests",
}
"""Fields of the HTTP API that have another place in a message."""


def set_status(context: RayServegRPCContext, error: Exception) -> None:
    """Has the call end with what went wrong, by the words of the HTTP API.

    A message has to be returned or yielded afterwards, in place of raising the error: Serve 2.60 passes the details on
    beside a message alone.
    """
    answer = to_api_error(error)
    status = to_status(answer)
    if answer.status >= 500:
        log.error("request failed", code=code_pb2.Code.Name(status.code), exc_info=error)
    context.set_code(_CODES.get(answer.status, grpc.StatusCode.INTERNAL))
    context.set_details(status.message)
    context.set_trailing_metadata([(DETAILS_KEY, status.SerializeToString())])


def to_status(error: ApiError) -> status_pb2.Status:
    """The status with its details: the field that is wrong, when to come back, and the error's code."""
    message = _shorten(error.message)
    status = status_pb2.Status(code=_CODES.get(error.status, grpc.StatusCode.INTERNAL).value[0], message=message)
    if error.param is not None and status.code == code_pb2.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(field=find_field(error.param), description=message)
        _add(status, error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(error.retry_after_s)
        _add(status, retry)
    if error.code is not None:
        info = error_details_pb2.ErrorInfo(reason=error.code.upper(), domain=DOMAIN)
        info.metadata.update({name: value for name, value in error.details.items() if isinstance(value, str)})
        _add(status, info)
    return status


def find_field(param: str) -> str:
    """The path in a message of what the HTTP API calls so."""
    first, dot, rest = param.partition(".")
    return _FIELDS.get(first, first) + dot + rest


def _add(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _shorten(message: str) -> str:
    encoded = message.encode()
    if len(encoded) <= LONGEST_MESSAGE_BYTES:
        return message
    return encoded[: LONGEST_MESSAGE_BYTES - 3].decode(errors="ignore") + "..."
