"""The user's cache folder: things that can be made again, such as the unpacked default model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """`$CONSERVE_CACHE`, else `$XDG_CACHE_HOME/conserve`, else `~/.cache/conserve`, as an absolute path.

    The folder may not exist yet. An empty variable counts as not set, as the XDG base directory specification says.
    """
    variables = os.environ if environ is None else environ
    if own := variables.get("CONSERVE_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := variables.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "conserve"
    return Path.home() / ".cache" / "conserve"


def profiles_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where latency profiles of engines are stored. The folder may not exist yet."""
    return cache_folder(environ) / "profiles"


def compiled_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where the compiled modules of the simulator are stored. The folder may not exist yet."""
    return cache_folder(environ) / "compiled"
