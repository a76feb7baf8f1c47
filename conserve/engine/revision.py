"""What an engine makes its tokens with: requests are continued where it is the same, as only there the rest is, too."""

from __future__ import annotations

import hashlib
from pathlib import Path

import structlog

from conserve.engine.vllm_compat import VllmConfig, current_platform, vllm_version
from conserve.models.revision import digest_folder

log = structlog.get_logger(__name__)


def find_revision(config: VllmConfig) -> str | None:
    """A short digest of the model and of how it is computed: 16 hexadecimal digits.

    Reads some megabytes of the model's files (`conserve.models.revision`).

    Args:
        config: Of the engine.

    Returns:
        None where it cannot be known: the files cannot be read, or a model of the hub has no commit.
    """
    model = config.model_config
    folder = Path(model.model)
    try:
        weights = digest_folder(folder) if folder.is_dir() else getattr(model.hf_config, "_commit_hash", None)
    except OSError as error:
        log.warning("the model's revision cannot be read", model=model.model, reason=str(error))
        return None
    if not weights:
        log.warning("the model's revision is not known", model=model.model)
        return None
    how = (vllm_version, current_platform.device_type, model.dtype, model.quantization, config.cache_config.cache_dtype)
    text = "|".join(str(part) for part in (weights, *how))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
