"""Whether an application answers, over HTTP, encrypted or not."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

TIMEOUT_S = 5.0


def ask_health(base_url: str, certificate: Path | None) -> httpx.Response:
    """Asks for `/health`.

    Args:
        base_url: Of the application.
        certificate: The one that must answer, for whatever host it is; None: any that this machine trusts.

    Raises:
        httpx.HTTPError: nothing answers, or something with another certificate.
        OSError: the certificate cannot be read.
    """
    return httpx.get(
        f"{base_url}/health", timeout=TIMEOUT_S, verify=True if certificate is None else _trust(certificate)
    )


def _trust(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False  # Asked under 127.0.0.1, and it is for the name that clients use.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # Trusted itself, whoever has signed it.
    return context
