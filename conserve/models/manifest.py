"""The checksum file of an unpacked model: what was written, so that damage is seen before an engine loads it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST_NAME = "conserve-manifest.json"

# Files up to this size are hashed at every look (a few milliseconds); larger ones, the weights, are compared by size.
HASHED_BYTES = 16 * 1024 * 1024


class FileRecord(BaseModel):
    """Size in bytes and SHA-256 of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """What an unpacked model consists of, and what it was unpacked from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source_sha256: str
    revision: int
    files: dict[str, FileRecord]


def write_manifest(folder: Path, source_sha256: str, revision: int) -> None:
    """Records every file in `folder`.

    Args:
        folder: the finished model folder, without subfolders.
        source_sha256: SHA-256 of the file that it was unpacked from.
        revision: version of the way of unpacking.
    """
    files = {
        path.name: FileRecord(size=path.stat().st_size, sha256=hash_file(path)) for path in sorted(folder.iterdir())
    }
    manifest = Manifest(source_sha256=source_sha256, revision=revision, files=files)
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def find_damage(folder: Path, source_sha256: str, revision: int, *, thorough: bool = False) -> str | None:
    """Compares `folder` with its manifest.

    Args:
        folder: a model folder with a manifest.
        source_sha256: what it should have been unpacked from.
        revision: how it should have been unpacked.
        thorough: hash the weights, too (about a second for 270 MB), instead of comparing their size.

    Returns:
        What is wrong, `None` when nothing is.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    except FileNotFoundError:
        return f"{MANIFEST_NAME} is missing"
    except ValidationError:
        return f"{MANIFEST_NAME} cannot be read"
    if (manifest.source_sha256, manifest.revision) != (source_sha256, revision):
        return "it was unpacked by another version"
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != record.size:
            return f"{name} has {path.stat().st_size} bytes instead of {record.size}"
        if (thorough or record.size <= HASHED_BYTES) and hash_file(path) != record.sha256:
            return f"{name} has another checksum"
    return None


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
