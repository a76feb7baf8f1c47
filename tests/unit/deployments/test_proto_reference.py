"""`docs/grpc-messages.md` is what the proto says."""

from __future__ import annotations

from pathlib import Path

from deployments.protos import conserve_pb2 as pb
from deployments.protos.reference import write_reference

PAGE = Path(__file__).parents[3] / "docs" / "grpc-messages.md"


def test_the_page_is_what_the_proto_says() -> None:
    assert PAGE.read_text() == write_reference(), "python -m deployments.protos.reference > docs/grpc-messages.md"


def test_everything_is_there_and_explained() -> None:
    text = PAGE.read_text()
    described = (pb.DESCRIPTOR.message_types_by_name, pb.DESCRIPTOR.services_by_name, pb.DESCRIPTOR.enum_types_by_name)
    for name in (name for kind in described for name in kind):
        assert f"\n## {name}\n\n" in text
    assert "|  |" not in text
