"""From what a caller writes to the lines of a batch's input file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

Request = str | Mapping[str, Any]
"""A prompt, the body of a request, or a whole line of a batch (a mapping with `body`)."""

CHAT = "/v1/chat/completions"
_PROMPT_FIELDS = {"/v1/completions": "prompt", "/v1/embeddings": "input"}
_KEPT_IN_MEMORY_BYTES = 16 << 20


async def make_input(
    requests: str | Path | Iterable[Request],
    endpoint: str,
    body: Mapping[str, Any] | None,
    model: str | None,
    find_model: Callable[[], Awaitable[str]],
) -> tuple[str, IO[bytes]]:
    """Opens a file of lines, or writes requests into a temporary one; returns its name and content, to be closed.

    Args:
        requests: The path of a file, or requests.
        endpoint: What is asked.
        body: Fields of every body that does not have them itself.
        model: Of every body that names none.
        find_model: Asked for it where nothing names one.

    Raises:
        OSError: the file cannot be read.
        TypeError: a request is none.
        ValueError: there is no request, or something is given that a file of lines has no place for.
    """
    if isinstance(requests, str | Path):
        if body is not None or model is not None:
            raise ValueError("body, model: not with a file, whose lines are sent as they are")
        path = Path(requests)
        return path.name, path.open("rb")  # noqa: ASYNC230 - as all reading of the file, which the upload does
    if not isinstance(requests, Iterable) or isinstance(requests, bytes | Mapping):
        raise TypeError(f"requests: must be the path of a file, or requests (it is a {type(requests).__name__})")
    content: IO[bytes] = tempfile.SpooledTemporaryFile(_KEPT_IN_MEMORY_BYTES)  # noqa: SIM115 - the caller closes it
    number = 0
    try:
        for number, request in enumerate(requests, 1):
            line = _make_line(request, number, endpoint, body or {})
            if "model" not in line["body"]:
                model = model or await find_model()
                line["body"]["model"] = model
            content.write(json.dumps(line).encode() + b"\n")
        if not number:
            raise ValueError("requests: there are none")
    except BaseException:
        content.close()
        raise
    return "requests.jsonl", content


def _make_line(request: Request, number: int, endpoint: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    line = {"custom_id": f"request-{number}", "method": "POST", "url": endpoint}
    if isinstance(request, str):
        body: Any = _make_body(request, endpoint)
    elif isinstance(request, Mapping) and "body" in request:
        line, body = {**line, **request}, request["body"]
    else:
        body = request
    if not isinstance(body, Mapping):
        raise TypeError(f"request {number}: must be a prompt, a body or a line of a batch (it is {body!r:.80})")
    return {**line, "body": {**defaults, **body}}


def _make_body(prompt: str, endpoint: str) -> dict[str, Any]:
    if endpoint in _PROMPT_FIELDS:
        return {_PROMPT_FIELDS[endpoint]: prompt}
    return {"messages": [{"role": "user", "content": prompt}]}
