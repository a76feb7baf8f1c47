"""Every failure as an error of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`, never a traceback."""

from __future__ import annotations

import re
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from conserve.engine.contract import InvalidRequest
from conserve.engine.vllm_compat import VLLMClientError
from conserve.jobs.errors import ApiError
from deployments.api_errors import install_api_error_handlers, to_validation_error
from deployments.pulse import NoReplicaTook
from deployments.ray_compat import BackPressureError, ErrorInfo, ErrorResponse, OpenAIHTTPException
from deployments.replica_loss import LOST_CODE, LOST_MESSAGE, ReplicaLost

log = structlog.get_logger(__name__)

RETRY_AFTER_S = 1


def refusal(error: InvalidRequest) -> ErrorResponse:
    """What a replica answers to a wrong request. Names the field in the message as vLLM does, for `to_api_error`."""
    message = f"{error} (parameter={error.param})"
    return ErrorResponse(error=ErrorInfo(message=message, type="BadRequestError", param=error.param, code=400))


def is_refusal(response: Any) -> bool:
    """Whether an error says that the request is wrong."""
    return isinstance(response, ErrorResponse) and response.error.code < 500


def is_error(response: Any) -> bool:
    """Whether what vLLM's OpenAI layer has answered with, or streams, is an error."""
    if isinstance(response, str):
        return response.startswith('data: {"error"')
    return isinstance(response, ErrorResponse)


def to_api_error(error: Exception) -> ApiError:
    """What a client is told of a failure, whichever way it has called."""
    match error:
        case ApiError():
            return error
        case OpenAIHTTPException():
            # vLLM names the field in its message only, and Ray Serve LLM passes no more than the message on.
            named = re.search(r"\(parameter=(\w+)", error.message)
            return _make(error.status_code, error.message, param=named[1] if named else None)
        case VLLMClientError():
            # Raised by the request's own validators, outside what Ray Serve LLM maps.
            return _make(400, str(error), param=getattr(error, "parameter", None))
        case RequestValidationError():
            return to_validation_error(error)
        case StarletteHTTPException():
            code = "model_not_found" if "model with id" in str(error.detail).lower() else None
            return _make(error.status_code, str(error.detail), code=code)
        case BackPressureError():
            message = "The server has too many requests waiting; try again later."
            return _make(429, message, code="rate_limit_exceeded", retry_after_s=RETRY_AFTER_S)
        case ReplicaLost():
            return _make(503, LOST_MESSAGE, code=LOST_CODE, retry_after_s=RETRY_AFTER_S)
        case NoReplicaTook():
            message = "No replica has had room for the request in the time that it may wait; try again later."
            return _make(503, message, code="no_replica", retry_after_s=RETRY_AFTER_S)
        case _:
            return _make(500, "The server had an error while processing your request.")


def _make(
    status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: int | None = None
) -> ApiError:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return ApiError(status, message, error_type=kind, param=param, code=code, retry_after_s=retry_after_s)


def install_error_handlers(app: FastAPI) -> None:
    """Makes every failure of a route an OpenAI error body."""
    install_api_error_handlers(app)

    async def answer(request: Request, error: Exception) -> JSONResponse:
        found = to_api_error(error)
        if found.status >= 500:
            log.error("request failed", path=request.url.path, status=found.status, exc_info=error)
        # A 405 says in `Allow` what would be allowed.
        headers = (error.headers if isinstance(error, StarletteHTTPException) else None) or {}
        return JSONResponse(found.body(), status_code=found.status, headers={**found.headers(), **headers})

    known = (
        OpenAIHTTPException,
        VLLMClientError,
        StarletteHTTPException,
        BackPressureError,
        ReplicaLost,
        NoReplicaTook,
    )
    for kind in (*known, Exception):
        app.exception_handler(kind)(answer)
