"""The page docs/settings.md, made from the settings: `python -m conserve.config.reference > docs/settings.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from conserve.config.sections import Settings

HEAD: Final = """# Settings

The settings are the `args` of the application in `serve_config.yaml`, or in another file that `--file` or
`CONSERVE_CONFIG` names. This page is made from the code: `python -m conserve.config.reference > docs/settings.md`.

- An environment variable overrides each: `engine.max_num_seqs` is `CONSERVE_ENGINE__MAX_NUM_SEQS`, with two underscores
  for each dot. Lists and mappings are written as YAML.
- An unknown name or a wrong value stops the start with the setting, the value and what is allowed;
  `conserve config check` says it without starting anything.
- What stands under a name of your own, as in `slo.classes` and `tenants`, has `NAME` in its place here, and is set in
  the file, or by the variable of the mapping as a whole.
"""

_LENGTHS: Final = {"maxItems": "at most {:,}", "maxProperties": "at most {:,}"}


def write_reference() -> str:
    """The page, in Markdown."""
    sections: list[tuple[str, type[BaseModel]]] = [("", Settings), *_find_sections(Settings, "")]
    return HEAD + "".join(f"\n{_write_section(path, section)}" for path, section in sections)


def _find_sections(section: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in section.model_fields.items():
        for each in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(each, type) and issubclass(each, BaseModel):
                below = f"{path}{name}." if each is field.annotation else f"{path}{name}.NAME."
                yield below, each
                yield from _find_sections(each, below)


def _write_section(path: str, section: type[BaseModel]) -> str:
    schema = section.model_json_schema()
    title = f"`{path.removesuffix('.')}`" if path else "The application"
    meaning = f"{' '.join((section.__doc__ or '').split())}\n\n" if path else ""
    rows = []
    for name, field in section.model_fields.items():
        values = schema["properties"][name]
        if _is_section(values, schema):
            continue
        default = "" if field.is_required() else _write_default(field.get_default(call_default_factory=True))
        allowed = _escape(_name_type(values, schema))
        rows.append(f"| `{path}{name}` | {allowed} | {default} | {_escape(field.description or '')} |")
    table = "\n".join(["| setting | what is allowed | default | meaning |", "| --- | --- | --- | --- |", *rows])
    return f"## {title}\n\n{meaning}{table}\n"


def _is_section(values: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    return "$ref" in values and "properties" in _resolve(values, schema)


def _resolve(values: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = schema["$defs"][values["$ref"].rsplit("/", 1)[-1]]
    return found


def _name_type(values: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """In words, such as `integer, at least 1` or `auto, cpu or gpu`."""
    if "$ref" in values:
        return "mapping"
    if "anyOf" in values:
        return _either([_name_type(one, schema) for one in values["anyOf"] if one.get("type") != "null"])
    if "enum" in values:
        return _either([f"`{one}`" for one in values["enum"]])
    if "const" in values:
        return f"`{values['const']}`"
    kind = {"boolean": "`true` or `false`", "string": "text", "object": "mapping", "array": "list"}.get(
        values["type"], values["type"]
    )
    return ", ".join(one for one in (kind, _name_range(values)) if one)


def _name_range(values: Mapping[str, Any]) -> str:
    """What a number is held to, or how many there may be; empty where it is held to nothing."""
    least, above, most = (values.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    if least is not None and most is not None:
        return f"{least:,.10g} to {most:,.10g}"
    begin = f"at least {least:,.10g}" if least is not None else f"more than {above:,.10g}" if above is not None else ""
    end = f"at most {most:,.10g}" if most is not None else ""
    lengths = [text.format(values[name]) for name, text in _LENGTHS.items() if name in values]
    return ", ".join(one for one in (begin, end, *lengths) if one)


def _either(kinds: list[str]) -> str:
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"


def _write_default(value: Any) -> str:
    if value is None:
        return "none"
    return f"`{json.dumps(value) if isinstance(value, bool | dict | list) else value}`"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(write_reference())
