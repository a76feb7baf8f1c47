"""What of a configuration is deployed and how it is encrypted, depending on whose Ray it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from conserve.config.redis_url import find_password
from conserve.launch.private_file import write_private
from conserve.launch.record import StackError, StackRecord
from conserve.launch.serve_config import ServeConfig
from conserve.launch.serve_proxy import has_haproxy
from conserve.launch.teardown import CREDENTIAL_FILE, Progress

_LEFT_OUT: Final = (
    "Redis: its password stays here. The nodes of that cluster need it, in CONSERVE_JOBS__REDIS_URL or in the file of "
    "jobs.redis_password_file"
)


def name_certificate(config: ServeConfig) -> str | None:
    """The file that HTTP and gRPC are encrypted with, as it stands in a record; None where they are not."""
    return None if config.tls is None else str(config.tls.certificate)


def check_tls(
    config: ServeConfig, environ: Mapping[str, str], running: StackRecord | None, *, is_foreign: bool
) -> None:
    """Sees that what is to be encrypted will be.

    Args:
        config: What is to be deployed.
        environ: Of the Ray head.
        running: The stack that runs already, if any does.
        is_foreign: Whether the Ray cluster is somebody else's.

    Raises:
        StackError: it would not be, or with another certificate.
    """
    if config.tls is not None and is_foreign:
        raise StackError(
            "`http_options.ssl_certfile` is for a Ray of our own. Whoever runs that cluster sets "
            "CONSERVE_TLS_CERTIFICATE and CONSERVE_TLS_KEY on its nodes; leave the option and the variables out here."
        )
    if config.tls is not None and not has_haproxy(environ) and config.grpc_port is not None:
        raise StackError(
            "Without HAProxy (RAY_SERVE_ENABLE_HA_PROXY=0) gRPC is not encrypted. Leave HAProxy in, or "
            "`grpc_options.grpc_servicer_functions` out."
        )
    if running is not None and running.owns_ray and running.tls_certificate != name_certificate(config):
        raise StackError(
            "The certificate of HTTP and gRPC is another one than that of the stack that runs "
            f"({running.tls_certificate or 'none'}): take it down first (`conserve down`)."
        )


def make_content(
    config: ServeConfig, environ: Mapping[str, str], record: StackRecord, state_dir: Path, on_progress: Progress
) -> dict[str, Any]:
    """What Serve gets, without secrets: whoever may look at Ray's dashboard sees it.

    The password of Redis goes into a file of the state folder where Ray is our own, and nowhere otherwise.
    """
    if config.tls is not None and has_haproxy(environ):
        config = config.without_tls()
    password = find_password(config.settings.jobs.redis_url)
    if password is None:
        return config.content
    if not record.owns_ray:
        on_progress(_LEFT_OUT)
        return config.content
    path = state_dir / CREDENTIAL_FILE
    write_private(path, f"{password}\n")
    return config.with_password_file(path).content
