"""What tests read of the answers of a gRPC server."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from deployments.testing.grpc_server import serve_methods, serve_on_port

__all__ = ["read_details", "serve_methods", "serve_on_port"]


def read_details(error: grpc.RpcError) -> dict[str, Any]:
    """Details of an error by the names of their types."""
    encoded = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    assert encoded is not None
    status = rpc_status.status_pb2.Status.FromString(encoded)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    found = {}
    for kind in (error_details_pb2.BadRequest, error_details_pb2.RetryInfo, error_details_pb2.ErrorInfo):
        for detail in status.details:
            if detail.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = kind.FromString(detail.value)
    return found
