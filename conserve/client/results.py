"""The answers of a batch, one by one: https://platform.openai.com/docs/guides/batch#5-retrieve-the-results."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from conserve.client.errors import BrokenAnswerError, RequestFailedError


class _Part(BaseModel):
    # A newer application may say more than this client knows.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Answer(_Part):
    """What the model has answered: `body` is that of the endpoint, an OpenAI chat completion for example."""

    status_code: int
    request_id: str | None = None
    body: dict[str, Any]


class Failure(_Part):
    """Why a request got no answer at all, such as `batch_expired`."""

    code: str | None = None
    message: str | None = None


class TokenUsage(_Part):
    """Tokens that an answer took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Result(_Part):
    """What became of one request of a batch: `response` has its answer, or `error` why there is none."""

    id: str
    custom_id: str
    response: Answer | None = None
    error: Failure | None = None

    @property
    def ok(self) -> bool:
        """Whether the model has answered; a refusal of the request is none."""
        return self.response is not None and self.response.status_code < 400

    @property
    def reason(self) -> str | None:
        """Why there is no answer, for people; None if there is one."""
        if self.ok:
            return None
        if self.response is not None:
            error = self.response.body.get("error")
            said = error.get("message") if isinstance(error, dict) else self.response.body.get("message")
            return f"{said or 'refused'} (HTTP {self.response.status_code})"
        if self.error is None:
            return "no reason given"
        return f"{self.error.message or 'no reason given'} ({self.error.code or 'no code'})"

    @property
    def body(self) -> dict[str, Any]:
        """The answer as the endpoint gives it.

        Raises:
            RequestFailedError: there is none.
        """
        if self.response is None or not self.ok:
            raise RequestFailedError(self, str(self.reason))
        return self.response.body

    @property
    def text(self) -> str:
        """The text of the first choice of a chat or completion.

        Raises:
            RequestFailedError: there is no answer, or it has no text.
        """
        try:
            choice = self.body["choices"][0]
            found = choice["message"]["content"] if "message" in choice else choice["text"]
        except (KeyError, IndexError, TypeError):
            raise RequestFailedError(self, "the answer has no text") from None
        return str(found or "")

    @property
    def embedding(self) -> list[float]:
        """The first embedding of an answer.

        Raises:
            RequestFailedError: there is no answer, or it has no embedding.
        """
        try:
            found: list[float] = self.body["data"][0]["embedding"]
        except (KeyError, IndexError, TypeError):
            raise RequestFailedError(self, "the answer has no embedding") from None
        return found

    @property
    def usage(self) -> TokenUsage:
        """Tokens that it took; zeros where there is no answer."""
        found = self.response.body.get("usage") if self.response is not None and self.ok else None
        return TokenUsage.model_validate(found or {})


def parse_result(line: bytes) -> Result:
    """Reads a line of an output or error file.

    Raises:
        BrokenAnswerError: it is none.
    """
    try:
        return Result.model_validate_json(line)
    except ValidationError:
        raise BrokenAnswerError(f"what should be a result is none: {line[:100]!r}") from None
