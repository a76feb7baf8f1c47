"""Requests of the HTTP surface: as schemathesis makes them from the OpenAPI description, and wild ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote, urlsplit

import requests

from loadtests.fuzz.asgi import Request
from loadtests.fuzz.corpus import CHAT, MODEL, list_inputs
from loadtests.fuzz.wild import Wild

_MESSAGES: Final = [{"role": "user", "content": "hello"}]
_PARTS: Final = [
    {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    {"role": "assistant", "content": "hi"},
]
_TOOLS: Final = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
_CHARSETS: Final = ("utf-8", "utf-7", "idna", "unicode_escape", "undefined", "hex", "punycode", "utf-16", "\x00", "é")


@dataclass
class KnownIds:
    """Of objects that there are."""

    file: str
    batch: str


PLACES: Final = KnownIds("file-00000000000000000000000000000000", "batch_00000000000000000000000000000000")
"""Where requests have ids until they are sent."""


def fill(request: Request, known: KnownIds) -> Request:
    """The request with ids in the place of `PLACES`."""
    target, body = request.target, request.body
    for place, found in ((PLACES.file, known.file), (PLACES.batch, known.batch)):
        target, body = target.replace(place, found), body.replace(place.encode(), found.encode())
    return replace(request, target=target, body=body)


def from_kwargs(kwargs: Mapping[str, Any]) -> Request | None:
    """The request of a generated case; None where no HTTP client could send it."""
    try:
        prepared = requests.Request(**kwargs).prepare()
    except (requests.RequestException, UnicodeError, ValueError):
        return None
    parts = urlsplit(str(prepared.url))
    body: Any = prepared.body or b""
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    headers = [(_to_bytes(name).lower(), _to_bytes(value)) for name, value in prepared.headers.items()]
    return Request(
        str(prepared.method), target, headers, body if isinstance(body, bytes) else body.encode("utf-8", "replace")
    )


def _to_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1", "replace")


def make_wild(generator: random.Random) -> Iterator[Request]:
    """Wild requests of all routes, without end."""
    wild = Wild(generator)
    routes = _list_routes()
    while True:
        kind = generator.randrange(10)
        if kind < 6:
            method, target, body = generator.choice(routes)
            request = _make_json(wild, method, target, body)
        elif kind < 8:
            request = _make_upload(wild)
        else:
            method, target, _ = generator.choice(routes)
            request = Request(generator.choice([method, "OPTIONS", "PUT", "PATCH", "HEAD", "TRACE"]), target)
        yield disturb(wild, request)


def vary(wild: Wild, request: Request) -> Request:
    """The request with its body changed: as JSON where it is JSON, otherwise byte by byte."""
    try:
        value = json.loads(request.body)
    except (ValueError, RecursionError):
        return replace(request, body=wild.spoil(request.body)) if request.body else request
    return replace(request, body=wild.write(wild.mutate(value)))


def _list_routes() -> list[tuple[str, str, Any]]:
    chat = {"model": MODEL, "messages": _MESSAGES, "max_completion_tokens": 4, "temperature": 0.5}
    prompt = {"model": MODEL, "prompt": "hello", "max_tokens": 4, "n": 1, "logprobs": 1, "stop": ["a"]}
    more = {"messages": _PARTS, "tools": _TOOLS, "tool_choice": "auto", "stream_options": {"include_usage": True}}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    batch: dict[str, Any] = {
        "input_file_id": PLACES.file,
        "endpoint": CHAT,
        "completion_window": "24h",
        "metadata": {"k": "v"},
    }
    batch |= {"priority": 1, "output_expires_after": {"anchor": "created_at", "seconds": 3_600}}
    generating: list[tuple[str, str, Any]] = [
        ("POST", CHAT, chat),
        ("POST", CHAT, chat | more | {"stream": True}),
        ("POST", CHAT, chat | {"response_format": schema, "logit_bias": {"1": 0.5}, "seed": 1, "top_logprobs": 2}),
        ("POST", "/v1/completions", prompt),
        ("POST", "/v1/completions", prompt | {"prompt": [[1, 2], [3]], "stream": True}),
        ("POST", "/v1/embeddings", {"model": MODEL, "input": ["hello", "you"], "dimensions": 2}),
    ]
    flex = [(method, target, body | {"service_tier": "flex"}) for method, target, body in generating[:5]]
    ids: list[tuple[str, str, Any]] = [
        ("GET", f"/v1/files/{PLACES.file}", None),
        ("GET", f"/v1/files/{PLACES.file}/content", None),
        ("DELETE", "/v1/files/file-0123456789abcdef", None),
        ("GET", f"/v1/batches/{PLACES.batch}", None),
        ("POST", f"/v1/batches/{PLACES.batch}", {"priority": 5}),
        ("GET", f"/v1/batches/{PLACES.batch}/results?after=0&follow=true", None),
        *(("POST", f"/v1/batches/{PLACES.batch}/{verb}", None) for verb in ("cancel", "pause", "resume")),
    ]
    lists: list[tuple[str, str, Any]] = [
        ("GET", "/v1/files?limit=2&order=asc&purpose=batch&after=" + PLACES.file, None),
        ("GET", f"/v1/batches?limit=2&after={PLACES.batch}", None),
        *(("GET", path, None) for path in ("/v1/models", f"/v1/models/{MODEL}", "/health", "/conserve/v1/status")),
        *(
            ("GET", path, None)
            for path in ("/console", "/console/console.js", "/conserve/v1/events", "/openapi.json", "/docs")
        ),
    ]
    return [*generating, *flex, ("POST", "/v1/batches", batch), ("POST", "/v1/batches", batch), *ids, *lists]


def _make_json(wild: Wild, method: str, target: str, body: Any) -> Request:
    if body is None:
        return Request(method, target)
    content = wild.write(wild.mutate(body))
    return Request(method, target, [(b"content-type", b"application/json")], content)


def _make_upload(wild: Wild) -> Request:
    draw = wild.generator
    boundary = draw.choice(["b", "b" * 200, "é", '"', "b;c", ""])
    names = ["file", "purpose", "expires_after[anchor]", "expires_after[seconds]", "x", "\x00", "é" * 99]
    values = ["batch", "created_at", "3600", "-1", "9" * 400, "9" * 5_000, "1e9", "\x00", "é", "fine-tune", "NaN"]
    parts = []
    chosen = [("file", 'filename="in.jsonl"', draw.choice(list(list_inputs())))]
    chosen += [("purpose", "", b"batch")] if draw.random() < 0.8 else []
    for _ in range(draw.randrange(4)):
        filename = draw.choice(["", "", 'filename="../x"', "filename*=utf-8''%ff%00", 'filename="\\ud800\\x00"'])
        chosen.append((draw.choice(names), filename, draw.choice(values).encode()))
    for name, filename, value in chosen:
        head = f'Content-Disposition: form-data; name="{name}"' + (f"; {filename}" if filename else "")
        parts.append(f"--{boundary}\r\n{head}\r\n\r\n".encode() + value + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    kind = f"multipart/form-data; boundary={boundary}"
    if draw.random() < 0.3:
        kind += f"; charset={draw.choice(_CHARSETS)}"
    if draw.random() < 0.3:
        body = wild.spoil(body)
    return Request("POST", "/v1/files", [(b"content-type", kind.encode())], body, draw.choice([1, 7, 1 << 16]))


def disturb(wild: Wild, request: Request) -> Request:
    """The request with something wrong in its head, in about half of all cases."""
    draw = wild.generator
    headers = list(request.headers)
    target = request.target
    match draw.randrange(12):
        case 0:
            value = draw.choice(
                [b"text/plain", b"", b"application/json; charset=utf-16", b"multipart/form-data", b"\xff"]
            )
            headers = [*(one for one in headers if one[0] != b"content-type"), (b"content-type", value)]
        case 1:
            value = draw.choice(
                [b"Bearer x", b"Bearer ", b"Basic \xff", b"", b"Bearer " + b"k" * 4_000, b"bearer \x00"]
            )
            headers.append((b"authorization", value))
        case 2:
            names = [b"traceparent", b"tracestate", b"x-request-id", b"x-session-id", b"accept", b"content-encoding"]
            names += [
                b"content-length",
                b"host",
                b"if-none-match",
                b"priority",
                b"x-forwarded-for",
                b"expect",
                b"range",
            ]
            values = [
                b"",
                b"\xff\x00",
                b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01",
                b"gzip",
                b"9" * 30,
                b"x" * 8_000,
            ]
            headers.append((draw.choice(names), draw.choice(values)))
        case 3:
            path, _, query = target.partition("?")
            strange = draw.choice(
                ["%00", "%ff", "%2e%2e%2f", "..", "//", "%ed%a0%80", "a" * 3_000, "%", "{batch_id}", "\t"]
            )
            segments = path.split("/")
            segments[draw.randrange(len(segments))] = strange
            target = quote("/".join(segments), safe="/%") + (f"?{query}" if query else "")
        case 4:
            queries = ["after", "limit", "order", "purpose", "follow", "x", "%00", "%ff", ""]
            texts = [
                "-1",
                "0",
                "9" * 400,
                "9" * 5_000,
                "%00",
                "%ff",
                "true",
                "x" * 3_000,
                "",
                "%ed%a0%80",
                "1e3",
                "nan",
            ]
            pairs = [f"{draw.choice(queries)}={draw.choice(texts)}" for _ in range(draw.randint(1, 4))]
            target = f"{target.partition('?')[0]}?{draw.choice(['&', ';', '&&']).join(pairs)}"
        case 5:
            return replace(request, body=wild.spoil(request.body), piece_bytes=draw.choice([1, 3, 1 << 16]))
        case _:
            return request
    return replace(request, headers=headers, target=target)


def with_places(case: Any) -> bool:
    """Puts `PLACES` into a generated case, and the name of the model; False if it names none."""
    by_name = {"file_id": PLACES.file, "batch_id": PLACES.batch, "model": MODEL}
    found = False
    for name in case.path_parameters.keys() & by_name.keys():
        case.path_parameters[name] = by_name[name]
        found = True
    if isinstance(case.body, dict):
        for name, value in (("input_file_id", PLACES.file), ("model", MODEL)):
            if name in case.body:
                case.body[name] = value
                found = True
    return found
