"""What is changed in the configuration that Ray Serve 2.60 writes for HAProxy, before HAProxy reads it.

Serve has no settings for these. Its pages of statistics and metrics, which ask for no key, listen on all interfaces;
every user of the machine may use its administration socket; a client may take an hour to send its headers; and HAProxy
does not encrypt what clients send, whatever `http_options.ssl_certfile` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CERTIFICATE_VARIABLE: Final = "CONSERVE_TLS_CERTIFICATE"
KEY_VARIABLE: Final = "CONSERVE_TLS_KEY"
METRICS_HOST_VARIABLE: Final = "CONSERVE_PROXY_METRICS_HOST"
LOOPBACK: Final = "127.0.0.1"

_OLDEST_TLS: Final = "TLSv1.2"
_METRICS: Final = re.compile(r"(frontend prometheus\n\s+bind )(:\d+)$", re.MULTILINE)
_STATISTICS: Final = re.compile(r"(listen stats\n\s+bind )\*(:\d+)$", re.MULTILINE)
_SOCKET: Final = re.compile(r"(stats socket \S+ mode )666( )")
_HTTP: Final = re.compile(r"(frontend http_frontend\n\s+bind \S+)$", re.MULTILINE)
_DEFAULTS: Final = re.compile(r"^defaults\n", re.MULTILINE)
_HEADERS_S: Final = 30
"""So long a client may take for the headers of a request; an answer may take as long as it does."""
_GRPC: Final = re.compile(r"(frontend grpc_frontend\n(?:\s*#.*\n)*\s+bind \S+) proto h2$", re.MULTILINE)


class ProxyConfigError(ValueError):
    """HAProxy must not be started like that. The message says why."""


@dataclass(frozen=True)
class Tls:
    """Files in PEM: the certificate with those that it was signed with, and its key, without a password."""

    certificate: Path
    key: Path

    def to_environment(self) -> dict[str, str]:
        """The variables that `read_tls` reads."""
        return {CERTIFICATE_VARIABLE: str(self.certificate), KEY_VARIABLE: str(self.key)}


def read_tls(environ: Mapping[str, str]) -> Tls | None:
    """The files that the environment names; None where it names none: then nothing is encrypted.

    Raises:
        ProxyConfigError: one is named without the other, or cannot be read.
    """
    found = {name: Path(environ[name]) for name in (CERTIFICATE_VARIABLE, KEY_VARIABLE) if environ.get(name)}
    if not found:
        return None
    for name in (CERTIFICATE_VARIABLE, KEY_VARIABLE):
        if name not in found:
            raise ProxyConfigError(f"{name} is not set, and {' and '.join(found)} is: nothing would be encrypted")
    for name, path in found.items():
        try:
            path.open("rb").close()
        except OSError as error:
            raise ProxyConfigError(f"{name}: {path} cannot be read: {error.strerror}") from None
    return Tls(found[CERTIFICATE_VARIABLE], found[KEY_VARIABLE])


def link_tls(tls: Tls, folder: Path) -> Path:
    """Makes one name of certificate and key, since HAProxy looks for the key beside the certificate; returns it.

    Raises:
        OSError: the links cannot be made.
    """
    name = folder / "tls.pem"
    for link, target in ((name, tls.certificate), (folder / "tls.pem.key", tls.key)):
        partial = link.with_name(f"{link.name}.partial")
        partial.unlink(missing_ok=True)
        partial.symlink_to(target.absolute())
        partial.replace(link)
    return name


def harden(text: str, metrics_host: str, certificate: Path | None) -> str:
    """The configuration with what is said above changed in it.

    Args:
        text: As Serve has written it.
        metrics_host: Where metrics are to be had, without a key; `*` is everywhere.
        certificate: What HTTP and gRPC are encrypted with, if at all; its key is beside it, see `link_tls`.

    Raises:
        ProxyConfigError: something that is to be changed is not there: Serve's configuration has changed.
    """
    text = _replace(_METRICS, rf"\g<1>{metrics_host}\g<2>", text, "the frontend of metrics")
    text = _replace(_STATISTICS, rf"\g<1>{LOOPBACK}\g<2>", text, "the statistics")
    text = _replace(_SOCKET, r"\g<1>600\g<2>", text, "the administration socket")
    text = _replace(_DEFAULTS, rf"\g<0>    timeout http-request {_HEADERS_S}s\n", text, "the section of defaults")
    if certificate is None:
        return text
    options = f"ssl crt {certificate} ssl-min-ver {_OLDEST_TLS}"
    text = _replace(_HTTP, rf"\g<1> {options} alpn h2,http/1.1", text, "the frontend of HTTP")
    if "frontend grpc_frontend" in text:
        text = _replace(_GRPC, rf"\g<1> {options} alpn h2", text, "the frontend of gRPC")
    return text


def _replace(pattern: re.Pattern[str], by: str, text: str, what: str) -> str:
    changed, count = pattern.subn(by, text)
    if count != 1:
        raise ProxyConfigError(f"{what} is not where Ray Serve 2.60 puts it; is that another version of Ray?")
    return changed
