"""Errors as OpenAI's API gives them: `{"error": {"message", "type", "param", "code"}}`, never a traceback."""

from __future__ import annotations

import re
from typing import Any

import structlog
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from conserve.engine.contract import InvalidRequest
from conserve.engine.vllm_compat import VLLMClientError
from deployments.api_errors import install_api_error_handlers
from deployments.ray_compat import BackPressureError, ErrorInfo, ErrorResponse, OpenAIHTTPException
from deployments.replica_loss import LOST_CODE, LOST_MESSAGE, ReplicaLost

log = structlog.get_logger(__name__)

RETRY_AFTER_S = 1


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    type_: str | None = None,
    retry_after_s: int | None = None,
) -> JSONResponse:
    """An error body with its status. `type_` follows from the status where it is not given."""
    kind = type_ or ("invalid_request_error" if status < 500 else "server_error")
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s is not None else None
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def refusal(error: InvalidRequest) -> ErrorResponse:
    """What a replica answers to a wrong request. Names the field in the message as vLLM does, for `_refused` below."""
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


def install_error_handlers(app: FastAPI) -> None:
    """Makes every failure of a route an OpenAI error body."""
    install_api_error_handlers(app)

    @app.exception_handler(OpenAIHTTPException)
    async def _refused(request: Request, error: OpenAIHTTPException) -> JSONResponse:
        if error.status_code >= 500:
            log.error("request failed", path=request.url.path, status=error.status_code, message=error.message)
        # vLLM names the field in its message only, and Ray Serve LLM passes no more than the message on.
        named = re.search(r"\(parameter=(\w+)", error.message)
        return error_response(error.status_code, error.message, param=named[1] if named else None)

    @app.exception_handler(VLLMClientError)
    async def _invalid_for_engine(request: Request, error: VLLMClientError) -> JSONResponse:
        # Raised by the request's own validators, outside what Ray Serve LLM maps.
        return error_response(400, str(error), param=getattr(error, "parameter", None))

    @app.exception_handler(StarletteHTTPException)
    async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = "model_not_found" if "model with id" in str(error.detail).lower() else None
        answer = error_response(error.status_code, str(error.detail), code=code)
        answer.headers.update(error.headers or {})  # A 405 says in `Allow` what would be allowed.
        return answer

    @app.exception_handler(BackPressureError)
    async def _overloaded(request: Request, error: BackPressureError) -> JSONResponse:
        message = "The server has too many requests waiting; try again later."
        return error_response(429, message, code="rate_limit_exceeded", retry_after_s=RETRY_AFTER_S)

    @app.exception_handler(ReplicaLost)
    async def _lost(request: Request, error: ReplicaLost) -> JSONResponse:
        log.error("request failed", path=request.url.path, exc_info=error)
        return error_response(503, LOST_MESSAGE, code=LOST_CODE, retry_after_s=RETRY_AFTER_S)

    @app.exception_handler(Exception)
    async def _failed(request: Request, error: Exception) -> JSONResponse:
        log.error("request failed", path=request.url.path, exc_info=error)
        return error_response(500, "The server had an error while processing your request.")
