"""Errors of the Files and Batch APIs: as handlers of the application, and in its OpenAPI description."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from conserve.jobs.errors import ApiError


class ErrorDetail(BaseModel):
    """What is wrong: `param` names the field or parameter.

    With `window_too_short`, `earliest_completion_window` is the shortest window that would do; null if none does.
    """

    message: str
    type: str
    param: str | None
    code: str | None
    earliest_completion_window: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is an error: https://platform.openai.com/docs/guides/error-codes."""

    error: ErrorDetail


_DESCRIPTIONS = {
    400: "A parameter is missing, unknown, or has a value that is not allowed; `param` names it.",
    401: "An API key is needed, or this one is not known, has expired or was revoked.",
    403: "The API key lacks the scope for that.",
    404: "There is no such object.",
    409: "That cannot be done in the state that the object is in.",
    410: "What is asked for is not kept any more.",
    413: "The file is too large.",
    408: "The request was not done in time.",
    429: "Too many at once, or a limit or a quota is used up; `Retry-After` says when to come back, if that may help.",
    503: "Redis or the file storage is away or full; `Retry-After` says when to come back.",
}


def describe_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for its description. 400, 401, 403, 429, 503 can always come, 4xx is HTTP's own."""
    # With `4XX` FastAPI leaves its own 422 out, in whose place we answer 400.
    described: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody, "description": "The request is refused."}}
    for status in sorted({400, 401, 403, 429, 503, *statuses}):
        described[status] = {"model": ErrorBody, "description": _DESCRIPTIONS[status]}
    return described


def install_api_error_handlers(app: FastAPI) -> None:
    """Makes the application answer `ApiError` and malformed requests with the error body of the OpenAI API."""
    app.exception_handler(ApiError)(_answer_api_error)
    app.exception_handler(RequestValidationError)(_answer_validation_error)


def missing(name: str) -> ApiError:
    """400: a parameter is not there."""
    return ApiError(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def unknown(name: str) -> ApiError:
    """400: a parameter that there is not."""
    return ApiError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def to_validation_error(error: RequestValidationError | ValidationError) -> ApiError:
    """400: the first of the things that are wrong with a request."""
    problem: dict[str, Any] = dict(error.errors()[0])
    place = [str(part) for part in problem["loc"]]
    if isinstance(error, RequestValidationError):
        del place[0]  # Which part of the request it is.
    if problem["type"] == "json_invalid":
        return ApiError(400, "The body of the request is not valid JSON.")
    if not place:
        return ApiError(400, f"The request is not valid: {problem['msg']}.")
    name = ".".join(place)
    if problem["type"] == "missing":
        return missing(name)
    if problem["type"] == "extra_forbidden":
        return unknown(name)
    return ApiError(400, f"Invalid value for '{name}': {problem['msg']}.", param=place[0], code="invalid_type")


async def _answer_api_error(_request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _answer_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    return await _answer_api_error(request, to_validation_error(error))
