"""Which model a folder holds, as a digest that is the same wherever the folder is copied to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from conserve.models.manifest import MANIFEST_NAME

WHOLE_BYTES = 64 << 20
"""Files up to this size count with all that is in them; of larger ones samples are read."""
SAMPLES, SAMPLE_BYTES = 32, 64 << 10

_SUFFIXES = frozenset(
    {
        *(".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"),
        *(".safetensors", ".bin", ".gguf", ".pt", ".pth"),
    }
)


def digest_folder(folder: Path) -> str:
    """The digest of a model: of its configuration, its tokenizer, and its weights.

    Takes well under a second: weights count with their size, their index, and samples from all over them. Two that were
    trained differently differ in nearly every number.

    Args:
        folder: In the Hugging Face layout.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in _SUFFIXES or path.name == MANIFEST_NAME or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= WHOLE_BYTES:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            else:
                for sample in _samples(file, size):
                    digest.update(sample)
    return digest.hexdigest()


def _samples(file: BinaryIO, size: int) -> list[bytes]:
    samples = []
    for number in range(SAMPLES):
        file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
        samples.append(file.read(SAMPLE_BYTES))
    return samples
