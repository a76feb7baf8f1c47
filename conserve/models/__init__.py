"""Which model an engine loads: the default one, a folder, or one of the Hugging Face hub."""

from __future__ import annotations

from conserve.models.cache import cache_folder, compiled_dir, profiles_dir
from conserve.models.default import (
    DEFAULT_MODEL,
    ModelError,
    default_model_folder,
    ensure_default_model,
    find_default_model_damage,
)
from conserve.models.source import resolve_model

__all__ = [
    "DEFAULT_MODEL",
    "ModelError",
    "cache_folder",
    "compiled_dir",
    "default_model_folder",
    "ensure_default_model",
    "find_default_model_damage",
    "profiles_dir",
    "resolve_model",
]
