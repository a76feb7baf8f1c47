"""The page docs/grpc-messages.md, made from the proto, whose comments only protoc (`grpcio-tools`) knows.

`python -m deployments.protos.reference > docs/grpc-messages.md` writes it anew.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

PROTO: Final = Path(__file__).with_name("conserve.proto")
HEAD: Final = """# gRPC services and messages

Package `conserve.v1`; [gRPC](grpc.md) says how to call it. This page is made from `deployments/protos/conserve.proto`:
`python -m deployments.protos.reference > docs/grpc-messages.md`.
"""

# Numbers of fields in the messages of descriptor.proto, of which the paths of comments are made.
_MESSAGE, _ENUM, _SERVICE, _MEMBER = 4, 5, 6, 2

Comments = Mapping[tuple[int, ...], str]


def write_reference() -> str:
    """The page, in Markdown.

    Raises:
        RuntimeError: protoc does not take the proto.
    """
    proto = _read_proto()
    comments = {tuple(one.path): _join(one.leading_comments) for one in proto.source_code_info.location}
    parts = [HEAD]
    parts += [_write_service(proto, number, comments) for number in range(len(proto.service))]
    parts += [_write_message(proto, number, comments) for number in range(len(proto.message_type))]
    parts += [_write_enum(proto, number, comments) for number in range(len(proto.enum_type))]
    return "\n".join(parts)


def _read_proto() -> FileDescriptorProto:
    protoc = importlib.import_module("grpc_tools.protoc")
    builtin = Path(str(protoc.__file__)).with_name("_proto")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "descriptors"
        paths = [f"-I{PROTO.parent}", f"-I{builtin}"]
        status = protoc.main(["protoc", *paths, "--include_source_info", f"--descriptor_set_out={made}", PROTO.name])
        if status != 0:
            raise RuntimeError(f"protoc ends with status {status}")
        (proto,) = FileDescriptorSet.FromString(made.read_bytes()).file
    return proto


def _write_service(proto: FileDescriptorProto, number: int, comments: Comments) -> str:
    service = proto.service[number]
    rows = []
    for index, method in enumerate(service.method):
        asked, answered = _link(method.input_type), _link(method.output_type)
        stream = "stream of " if method.server_streaming else ""
        said = comments[_SERVICE, number, _MEMBER, index]
        rows.append(f"| `{method.name}` | {asked} | {stream}{answered} | {said} |")
    table = ["| method | takes | gives | meaning |", "| --- | --- | --- | --- |", *rows]
    return _write_part(service.name, comments[_SERVICE, number], table)


def _write_message(proto: FileDescriptorProto, number: int, comments: Comments) -> str:
    message = proto.message_type[number]
    entries = {one.name: one for one in message.nested_type if one.options.map_entry}
    rows = []
    for index, field in enumerate(message.field):
        said = comments[_MESSAGE, number, _MEMBER, index]
        is_choice = field.HasField("oneof_index") and not field.proto3_optional
        choice = f"Of `{message.oneof_decl[field.oneof_index].name}` one is given. " if is_choice else ""
        rows.append(f"| `{field.name}` | {field.number} | {_name_type(field, entries)} | {choice}{said} |")
    table = ["| field | number | type | meaning |", "| --- | --- | --- | --- |", *rows]
    return _write_part(message.name, comments[_MESSAGE, number], table)


def _write_enum(proto: FileDescriptorProto, number: int, comments: Comments) -> str:
    enum = proto.enum_type[number]
    rows = [
        f"| `{value.name}` | {value.number} | {comments[_ENUM, number, _MEMBER, index]} |"
        for index, value in enumerate(enum.value)
    ]
    return _write_part(
        enum.name, comments[_ENUM, number], ["| value | number | meaning |", "| --- | --- | --- |", *rows]
    )


def _write_part(name: str, comment: str, table: list[str]) -> str:
    return "\n".join([f"## {name}", "", comment, "", *table, ""])


def _name_type(field: Any, entries: Mapping[str, Any]) -> str:
    entry = entries.get(field.type_name.rsplit(".", 1)[-1])
    if entry is not None:
        key, value = entry.field
        return f"map of {_name_type(key, {})} to {_name_type(value, {})}"
    name = _link(field.type_name) if field.type_name else field.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == field.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _link(name: str) -> str:
    """A name of ours leads to its part of the page; others are said in full."""
    if name.startswith(".google."):
        return name.removeprefix(".")
    short = name.rsplit(".", 1)[-1]
    return f"[{short}](#{short.lower()})"


def _join(comment: str) -> str:
    return " ".join(comment.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(write_reference())
