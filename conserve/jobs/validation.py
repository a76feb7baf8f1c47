"""Checks the lines of an input file as it streams by. Pure: bytes in, byte ranges and problems out.

Codes follow those the OpenAI Batch API reports in `errors.data`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from conserve.config import RequestSettings
from conserve.jobs.batch import BatchEndpoint, BatchError
from conserve.jobs.input_size import SizeCounter
from conserve.jobs.prompt_prefix import PromptPrefix
from conserve.policy.batch_work import InputSize
from conserve.policy.refused_field import RefusedField
from conserve.policy.request_rules import RequestRules

MAX_CUSTOM_ID_LENGTH = 512
MAX_PROBLEMS = 100
_PART_REQUESTS, _PART_BYTES = 500, 4 << 20


class RequestRange(NamedTuple):
    """Where one request stands in an input file: line from 1, byte offset, length in bytes without the line end."""

    line: int
    offset: int
    length: int


class RawLine(NamedTuple):
    """One line as it was read; `text` is None when it is longer than allowed."""

    place: RequestRange
    text: bytes | None


class _LineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def split_lines(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[RawLine]:
    """Cuts a stream into lines, holding no more than one line and one chunk. A too long line is skipped over."""
    line, start = 1, 0
    kept = bytearray()
    length = 0
    for chunk in chunks:
        position = 0
        while (end := chunk.find(b"\n", position)) >= 0:
            length += end - position
            if length <= max_line_bytes:
                kept += memoryview(chunk)[position:end]
            yield RawLine(RequestRange(line, start, length), bytes(kept) if length <= max_line_bytes else None)
            line, start = line + 1, start + length + 1
            kept.clear()
            length = 0
            position = end + 1
        length += len(chunk) - position
        if length <= max_line_bytes:
            kept += memoryview(chunk)[position:]
    if length:
        yield RawLine(RequestRange(line, start, length), bytes(kept) if length <= max_line_bytes else None)


@dataclass
class InputValidator:
    """Checks one input file. With `check` read to its end, `problems`, `total`, `model`, `prefix`, `size` are known."""

    endpoint: str
    models: Collection[str]
    max_requests: int
    max_line_bytes: int
    rules: RequestRules = field(default_factory=RequestRules)
    problems: list[BatchError] = field(default_factory=list)
    total: int = 0
    model: str | None = None
    prefix: PromptPrefix = field(default_factory=PromptPrefix)
    _inputs: int = 0
    _seen: dict[str, int] = field(default_factory=dict)
    _file_bytes: int = 0

    def __post_init__(self) -> None:
        self._counter = SizeCounter(self.endpoint)

    @property
    def size(self) -> InputSize:
        """How much the file asks for; for a file without problems."""
        return self._counter.to_size(self._file_bytes)

    def check(self, chunks: Iterable[bytes]) -> Iterator[RequestRange]:
        """Yields the ranges of valid requests. Stops early at 100 problems or at too many lines."""
        blank: RequestRange | None = None
        for raw in split_lines(chunks, self.max_line_bytes):
            # With the line end, which the last line may lack.
            self._file_bytes = raw.place.offset + raw.place.length + 1
            if raw.text is not None and not raw.text.strip():
                blank = blank or raw.place
                continue
            if blank is not None:  # Blank lines are ignored at the end of a file only.
                self._report(blank.line, "invalid_json_line", "This line is blank.", None)
                blank = None
            self.total += 1
            if self.total > self.max_requests:
                message = f"The file holds more than {self.max_requests} requests, which is the limit."
                self._report(raw.place.line, "too_many_tasks", message, None)
                return
            try:
                self._check_line(raw)
            except _LineError as error:
                self._report(raw.place.line, error.code, str(error), error.param)
            else:
                yield raw.place
            if len(self.problems) >= MAX_PROBLEMS:
                return
        if self.total == 0:
            self.problems.append(BatchError(code="empty_file", message="The input file holds no requests."))

    def _report(self, line: int, code: str, message: str, param: str | None) -> None:
        self.problems.append(BatchError(code=code, message=message, param=param, line=line))

    def _check_line(self, raw: RawLine) -> None:
        if raw.text is None:
            raise _LineError("line_too_long", f"This line is longer than {self.max_line_bytes} bytes.")
        request = parse_line(raw.text)
        self._check_custom_id(request, raw.place.line)
        if "method" not in request:
            raise _LineError("missing_required_parameter", "Missing required parameter: 'method'.", "method")
        if request["method"] != "POST":
            raise _LineError("invalid_method", f"'method' must be 'POST', not {_show(request['method'])}.", "method")
        if "url" not in request:
            raise _LineError("missing_required_parameter", "Missing required parameter: 'url'.", "url")
        if request["url"] != self.endpoint:
            message = f"'url' must be the endpoint of the batch, '{self.endpoint}', not {_show(request['url'])}."
            raise _LineError("invalid_url", message, "url")
        self._check_body(request)

    def _check_custom_id(self, request: dict[str, Any], line: int) -> None:
        if "custom_id" not in request:
            raise _LineError("missing_required_parameter", "Missing required parameter: 'custom_id'.", "custom_id")
        custom_id = request["custom_id"]
        if not isinstance(custom_id, str) or not custom_id:
            raise _LineError("invalid_custom_id", "'custom_id' must be a string that is not empty.", "custom_id")
        if len(custom_id) > MAX_CUSTOM_ID_LENGTH:
            message = f"'custom_id' is longer than {MAX_CUSTOM_ID_LENGTH} characters."
            raise _LineError("invalid_custom_id", message, "custom_id")
        if any("\ud800" <= character <= "\udfff" for character in custom_id):
            raise _LineError("invalid_custom_id", "'custom_id' holds half a surrogate pair.", "custom_id")
        first = self._seen.setdefault(custom_id, line)
        if first != line:
            message = f"The 'custom_id' {_show(custom_id)} was used before, in line {first}."
            raise _LineError("duplicate_custom_id", message, "custom_id")

    def _check_body(self, request: dict[str, Any]) -> None:
        if "body" not in request:
            raise _LineError("missing_required_parameter", "Missing required parameter: 'body'.", "body")
        body = request["body"]
        if not isinstance(body, dict):
            raise _LineError("invalid_body", "'body' must be a JSON object.", "body")
        if body.get("stream") not in (None, False):
            raise _LineError("stream_not_supported", "'stream' must not be set in a batch.", "body.stream")
        if "model" not in body:
            raise _LineError("missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model")
        model = body["model"]
        if not isinstance(model, str) or model not in self.models:
            served = ", ".join(f"'{name}'" for name in sorted(self.models))
            raise _LineError("model_not_found", f"There is no model {_show(model)}; served: {served}.", "body.model")
        if self.model is None:
            self.model = model
        elif model != self.model:
            message = f"All requests of a batch must name one model; this names '{model}', earlier ones '{self.model}'."
            raise _LineError("mismatched_model", message, "body.model")
        try:
            self.rules.check(body)
        except RefusedField as error:
            raise _LineError("not_allowed", str(error), f"body.{error.param}") from None
        self.prefix.compare(body)
        if self.endpoint == BatchEndpoint.EMBEDDINGS:
            self._count_inputs(body.get("input"))
        self._counter.add(body)

    def _count_inputs(self, value: object) -> None:
        # A list of numbers is one input: its tokens.
        several = isinstance(value, list) and any(not isinstance(one, int) for one in value)
        self._inputs += len(value) if several and isinstance(value, list) else 1
        if self._inputs > self.max_requests:
            message = f"With this line the file holds more than {self.max_requests} inputs, which is the limit."
            raise _LineError("too_many_inputs", message, "body.input")


def make_rules(settings: RequestSettings) -> RequestRules:
    """The rules that these settings say."""
    return RequestRules(
        settings.max_prompt_tokens,
        settings.max_output_tokens,
        settings.max_sequences,
        settings.max_json_depth,
        frozenset(settings.media_domains),
    )


def parse_line(text: bytes) -> dict[str, Any]:
    """Reads one line as a JSON object, strictly."""
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _LineError("invalid_encoding", f"This line is not UTF-8 (byte {error.start}).") from None
    except RecursionError:
        raise _LineError("invalid_json_line", "This line is nested too deeply.") from None
    except ValueError as error:
        raise _LineError("invalid_json_line", f"This line is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise _LineError("invalid_request", "This line must be a JSON object.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _show(value: object) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def take_part(ranges: Iterator[RequestRange]) -> list[RequestRange]:
    """The next requests, so many as one script should take; none: there are no more."""
    taken: list[RequestRange] = []
    size = 0
    for part in ranges:
        taken.append(part)
        size += part.length
        if len(taken) >= _PART_REQUESTS or size >= _PART_BYTES:
            break
    return taken
