"""From what a user writes as `model.source` to what an engine can load."""

from __future__ import annotations

import os
import re
from pathlib import Path

from conserve.models.default import DEFAULT_MODEL, ModelError, ensure_default_model

# Names of repositories as huggingface_hub allows them: `name` or `owner/name`.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def resolve_model(source: str) -> str:
    """What vLLM is given as its model for a `model.source` of the settings.

    The default model is unpacked where it is not yet, which takes about 20 s and blocks.

    Args:
        source: the name of the default model, a folder in the Hugging Face layout, or a Hugging Face model id.

    Returns:
        An absolute folder, or the model id unchanged.

    Raises:
        ModelError: the folder does not exist or holds no model, the text is none of the three, or the default model
            cannot be unpacked.
    """
    if source == DEFAULT_MODEL:
        return str(ensure_default_model())
    path = Path(source).expanduser()
    if source and path.exists():
        if not (path / "config.json").is_file():
            raise ModelError(f"model.source: {source!r} is no model folder: there is no config.json in it")
        return str(path.absolute())
    if _looks_like_path(source):
        raise ModelError(f"model.source: there is no folder {source!r}")
    if not _HUB_ID.fullmatch(source):
        allowed = f"`{DEFAULT_MODEL}`, a folder, or a Hugging Face id such as `owner/name`"
        raise ModelError(f"model.source: must be {allowed} (it is {source!r})")
    return source


def _looks_like_path(source: str) -> bool:
    return source.startswith((os.sep, ".", "~")) or source.endswith(os.sep) or source.count(os.sep) > 1
