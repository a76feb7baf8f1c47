"""Certificates for tests, of an authority of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """Files in PEM: who signs, a server's certificate with its key, and a client's."""

    authority: Path
    certificate: Path
    key: Path
    client: Path
    client_key: Path


def make_certificates(folder: Path, name: str = "127.0.0.1") -> Certificates:
    """Makes them; the server's is for this host name or address."""
    authority = trustme.CA()
    server, client = authority.issue_cert(name), authority.issue_cert("client")
    made = Certificates(*(folder / f"{name}.pem" for name in ("authority", "server", "key", "client", "client-key")))
    authority.cert_pem.write_to_path(made.authority)
    for paths, issued in (((made.certificate, made.key), server), ((made.client, made.client_key), client)):
        paths[0].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(paths[1])
        paths[1].chmod(0o600)
    return made
