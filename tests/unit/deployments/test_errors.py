from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from vllm.exceptions import VLLMValidationError

from conserve.jobs.errors import ApiError
from deployments.errors import install_error_handlers
from deployments.ray_compat import BackPressureError, OpenAIHTTPException


async def ask(failure: Exception) -> httpx.Response:
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/fail")
    async def fail() -> None:
        raise failure

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/fail")


@pytest.mark.parametrize(
    ("make", "status", "message", "param", "code"),
    [
        (lambda: ApiError(404, "No such batch", param="id", code="not_found"), 404, "No such batch", "id", "not_found"),
        (
            lambda: OpenAIHTTPException(400, "too many (parameter=max_tokens, value=9)", "BadRequestError"),
            *(400, "too many", "max_tokens", None),
        ),
        (
            lambda: VLLMValidationError("needs stream=True", parameter="stream_options"),
            *(400, "needs stream", "stream_options", None),
        ),
        (lambda: HTTPException(404, 'Could not find base model with ID "x".'), 404, "model", None, None),
        (
            lambda: HTTPException(404, 'Could not find model with id "x".'),
            *(404, "Could not find", None, "model_not_found"),
        ),
        (lambda: BackPressureError(num_queued_requests=9, max_queued_requests=8), 429, "too many", None, "rate"),
        (lambda: RuntimeError("secret detail"), 500, "had an error", None, None),
    ],
)
async def test_every_failure_has_openai_s_form(
    make: Callable[[], Exception], status: int, message: str, param: str | None, code: str | None
) -> None:
    response = await ask(make())
    error = response.json()["error"]
    assert response.status_code == status
    assert message in error["message"]
    assert error["param"] == param
    assert (error["code"] or "").startswith(code or "")
    assert set(error) == {"message", "type", "param", "code"}
    assert "secret" not in response.text
    assert "Traceback" not in response.text


async def test_overload_says_when_to_come_back() -> None:
    response = await ask(BackPressureError(num_queued_requests=9, max_queued_requests=8))
    assert int(response.headers["Retry-After"]) >= 1


async def test_unknown_route_has_openai_s_form_too() -> None:
    app = FastAPI()
    install_error_handlers(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/nowhere")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "invalid_request_error")
