"""Tells the deployments of one Redis apart, by where their files are: two must not share a namespace."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import socket
from typing import Any, NamedTuple

from redis.asyncio import Redis

from conserve.jobs.errors import UnsuitableServerError
from conserve.jobs.keys import Keys
from conserve.jobs.storage import Storage

MARK = "deployment.id"
"""A file beside the others that says whose they are."""
_PASSWORD = re.compile(r"//[^/@]*@")


class Identity(NamedTuple):
    """A deployment. `files` says where its files are: a folder behind the host's name, or a URL without password.

    `mark` is a random string that lies in the folder: a shared one has other names on other hosts, and a container gets
    another host name with each start. Of a URL it is empty.
    """

    files: str
    mark: str

    def is_same(self, other: Identity) -> bool:
        """True when both have the same files."""
        return self.files == other.files or (self.mark != "" and self.mark == other.mark)


async def check_identity(redis: Redis, keys: Keys, files_url: str) -> None:
    """Makes the namespace this deployment's, or sees that it is already.

    Raises:
        UnsuitableServerError: it is another one's.
        OSError: the storage of the files is away, and whose they are could not be known otherwise.
    """
    client: Any = redis
    found = await client.get(keys.deployment)
    try:
        own = await asyncio.to_thread(find_identity, files_url)
    except OSError:
        if found is None or not _read(found).is_same(Identity(_describe(files_url), "")):
            raise
        return
    if found is None:
        await client.set(keys.deployment, _write(own), nx=True)
        found = await client.get(keys.deployment)
    other = _read(found or _write(own))
    if not other.is_same(own):
        raise UnsuitableServerError(
            f"The batches in Redis under `jobs.namespace` are those of another deployment (key '{keys.deployment}'): "
            f"its files are at '{other.files}', those of this one at '{own.files}'. "
            "Give each deployment a `jobs.namespace` of its own. "
            f"If it is the same one and its files were moved, delete the key '{keys.deployment}'."
        )
    if other.mark != own.mark:
        await client.set(keys.deployment, _write(own))  # The folder was emptied.


def find_identity(files_url: str) -> Identity:
    """The deployment with these files; marks their folder if need be. Blocking. Raises OSError."""
    storage = Storage(files_url)
    mark = storage.create_once(MARK, secrets.token_hex(16).encode()).decode() if storage.folder is not None else ""
    return Identity(_describe(files_url), mark)


def _describe(files_url: str) -> str:
    folder = Storage(files_url).folder
    return _PASSWORD.sub("//", files_url) if folder is None else f"{socket.gethostname()}:{folder}"


def _write(identity: Identity) -> str:
    return json.dumps(identity._asdict())


def _read(text: str) -> Identity:
    try:
        fields = json.loads(text)
        return Identity(str(fields["files"]), str(fields["mark"]))
    except (ValueError, KeyError, TypeError):
        return Identity(text, "")
