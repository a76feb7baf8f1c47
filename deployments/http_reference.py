"""The page docs/http.md, made from the routes: `python -m deployments.http_reference > docs/http.md`."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ray.serve.llm.ingress import make_fastapi_ingress

from conserve.config import Settings
from conserve.harvest.messages import CapacityReport
from deployments.app import build_fastapi_app
from deployments.ingress import ENDPOINTS, ConServeIngress

HEAD: Final = """# HTTP

Every route of the front, with what it takes and gives. This page is made from its OpenAPI description:
`python -m deployments.http_reference > docs/http.md`. A running application has that at `/openapi.json`, and shows it
at `/docs`.

[Batches over HTTP](batches.md) says how files and batches behave, [requests that can wait](flex.md) what
`service_tier: flex` does. Where [keys](tenants.md#keys) are needed, send one as `Authorization: Bearer KEY`. The
[console](console.md) is at `/console`; `/-/healthz` is Serve's own and says whether the front is there.

Errors of every route have the body [ErrorBody](#errorbody).
"""

VLLM: Final = "Fields are OpenAI's and vLLM's (`{name}`), passed on to the engine:"
OWN: Final = """\
Further ones are `slo_class`, whose [objectives](objectives.md) hold, and `service_tier`. What a client sends as
`priority` counts for nothing."""

# Bodies of `ray.serve.llm`, whose fields are vLLM's to explain.
_GENERATING: Final = ("ChatCompletionRequest", "CompletionRequest")
_OF_VLLM: Final = (*_GENERATING, "EmbeddingCompletionRequest", "EmbeddingChatRequest")
_MORE: Final = {"ReplicaStatus": inspect.cleandoc(CapacityReport.__doc__ or "").partition("\n\n")[2]}

Schema = Mapping[str, Any]


def write_reference() -> str:
    """The page, in Markdown."""
    description = describe_routes()
    routes = [
        (method, path, operation)
        for path, operations in description["paths"].items()
        for method, operation in operations.items()
    ]
    page = Page(description["components"]["schemas"])
    parts = [HEAD, "## Routes\n", "| | |\n| --- | --- |"]
    parts += [
        f"| [`{method.upper()} {path}`](#{_anchor(method, path)}) | {_title(one)} |" for method, path, one in routes
    ]
    parts += [page.write_route(method, path, operation) for method, path, operation in routes]
    parts.append("\n## Objects")
    parts += page.write_objects()
    return "\n".join(parts) + "\n"


def describe_routes() -> dict[str, Any]:
    """The OpenAPI description of the front, as the application answers with at `/openapi.json`."""
    app = build_fastapi_app(Settings())
    make_fastapi_ingress(ConServeIngress, endpoint_map=ENDPOINTS, app=app)
    return app.openapi()


class Page:
    """Writes routes, and then the objects that they speak of."""

    def __init__(self, schemas: Mapping[str, Schema]) -> None:
        self._schemas = schemas
        self._wanted: dict[str, None] = {"ErrorBody": None}

    def write_route(self, method: str, path: str, operation: Schema) -> str:
        """A part with what the route takes, gives and refuses."""
        lines = [f"\n### {method.upper()} {path}", "", f"{_title(operation)}.", ""]
        rows = [
            self._row(one["name"], one["schema"], is_required=one["required"], where=one["in"])
            for one in operation.get("parameters", ())
        ]
        body = operation.get("requestBody", {}).get("content", {})
        for media_type, content in body.items():
            schema = content["schema"]
            if names := [name for name in _list_names(schema) if name in _OF_VLLM]:
                lines += [VLLM.format(name="` or `".join(names)), ""]
                lines += [", ".join(f"`{name}`" for name in self._schemas[names[0]]["properties"]) + ".", ""]
                lines += [OWN, ""] if names[0] in _GENERATING else []
                continue
            if "$ref" in schema:
                schema = self._schemas[_name(schema)]
            required = schema.get("required", ())
            where = "form" if media_type.startswith("multipart") else "body"
            rows += [
                self._row(name, one, is_required=name in required, where=where)
                for name, one in schema["properties"].items()
            ]
        if rows:
            lines += ["| | in | what is allowed | default | meaning |", "| --- | --- | --- | --- | --- |", *rows, ""]
        lines += [f"- {line}" for line in self._list_answers(operation)]
        return "\n".join(lines)

    def _list_answers(self, operation: Schema) -> Iterator[str]:
        for status, answer in operation["responses"].items():
            if status in ("4XX", "422"):  # HTTP's own, and what is answered with 400 in its place.
                continue
            given = [self._say(one["schema"]) for one in answer.get("content", {}).values() if one.get("schema")]
            if status == "200":
                said = "" if answer["description"] == "Successful Response" else answer["description"]
                is_object = given and given[0].startswith(("[", "list"))
                yield f"200: {given[0] if is_object else said or 'the answer.'}"
            else:
                yield f"{status}: {answer['description']}"

    def write_objects(self) -> Iterator[str]:
        """A part for each object that routes, or these objects, speak of."""
        done: set[str] = set()
        while rest := [name for name in self._wanted if name not in done]:
            name = min(rest)
            done.add(name)
            yield self._write_object(name, self._schemas[name])

    def _write_object(self, name: str, schema: Schema) -> str:
        lines = [f"\n### {name}", "", _unwrap(schema.get("description", "")), ""]
        if name in _MORE:
            lines += [_unwrap(_MORE[name]), ""]
        if "enum" in schema:
            lines += [", ".join(f"`{one}`" for one in schema["enum"]), ""]
        if properties := schema.get("properties"):
            lines += ["| field | type | default |", "| --- | --- | --- |"]
            lines += [f"| `{field}` | {self._say(one)} | {_write_default(one)} |" for field, one in properties.items()]
        return "\n".join(lines)

    def _row(self, name: str, schema: Schema, *, is_required: bool, where: str) -> str:
        default = "has to be given" if is_required else _write_default(schema)
        meaning = " ".join(schema.get("description", "").split())
        return f"| `{name}` | {where} | {self._say(schema)} | {default} | {meaning} |"

    def _say(self, schema: Schema) -> str:
        """In words what values there are."""
        if "$ref" in schema:
            name = _name(schema)
            self._wanted[name] = None
            return f"[{name}](#{name.lower()})"
        if "anyOf" in schema:
            return " or ".join(self._say(one) for one in schema["anyOf"])
        if "enum" in schema:
            return ", ".join(f"`{one}`" for one in schema["enum"])
        if "const" in schema:
            return f"`{schema['const']}`"
        kind = schema.get("type", "JSON")
        if kind == "array":
            inner = schema.get("items", {})
            return f"list of {self._say(inner)}" if inner else "list"
        if kind == "object":
            values = schema.get("additionalProperties")
            return f"mapping to {self._say(values)}" if isinstance(values, dict) else "mapping"
        said = {"null": "null", "string": "text", "boolean": "`true` or `false`"}.get(kind, kind)
        if schema.get("format") == "binary":
            said = "bytes"
        if "pattern" in schema:
            return f"{said} like `{schema['pattern']}`"
        return f"{said}{_name_range(schema)}"


def _name_range(schema: Schema) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        return f", {least:,.10g} to {most:,.10g}"
    return f", at least {least:,.10g}" if least is not None else f", at most {most:,.10g}" if most is not None else ""


def _list_names(schema: Schema) -> list[str]:
    return [_name(one) for one in schema.get("anyOf", [schema]) if "$ref" in one]


def _name(schema: Schema) -> str:
    return str(schema["$ref"]).rsplit("/", 1)[-1]


def _write_default(schema: Schema) -> str:
    if "default" not in schema:
        return ""
    default = schema["default"]
    return "" if default in ({}, []) or isinstance(default, dict) else f"`{json.dumps(default)}`"


def _title(operation: Schema) -> str:
    """The first paragraph of what the code says."""
    said = operation["description"].partition("\n\n")[0]
    return " ".join(said.split()).removesuffix(".").replace("|", "\\|")


def _unwrap(text: str) -> str:
    """Paragraphs and lists as they are; the columns of `Attributes:` become a list."""
    lines: list[str] = []
    in_attributes = False
    for line in text.splitlines():
        if line == "Attributes:":
            in_attributes = True
            continue
        lines.append(f"- `{line.strip().replace(': ', '`: ', 1)}" if in_attributes and line.strip() else line)
    return "\n".join(lines)


def _anchor(method: str, path: str) -> str:
    """What both MkDocs and GitHub make of the heading."""
    return f"{method}-{re.sub(r'[^a-z0-9_-]', '', path)}"


if __name__ == "__main__":
    sys.stdout.write(write_reference())
