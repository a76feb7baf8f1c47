"""Loads the Lua scripts: one file for each operation that must be atomic, in the folder `lua`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

_PRELUDE = "_batch"
_LEDGER_PRELUDE = "_ledger"
_WITHOUT_PRELUDE = frozenset(
    {"pin_file", "delete_file", "put_file", "index_file", "barrier", "lead", "active", "summaries"}
    | {"read_reports", "put_allotments", "put_api_key", "drop_api_keys", "migrate_1"}
)
_OF_LEDGER = frozenset({"admit", "hold", "adjust", "drop", "retire", "attend", "unattended", "leave"})


class Scripts:
    """Runs scripts by name on one Redis client. The server keeps them by hash; an unknown one is sent again."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._scripts: dict[str, AsyncScript] = {}

    async def run(self, name: str, keys: Iterable[str], args: Iterable[str | int | bytes] = ()) -> Any:
        """Runs `lua/<name>.lua` and returns its result as the client decodes it."""
        return await self._script(name)(keys=list(keys), args=list(args))

    async def run_each(self, name: str, calls: Iterable[Iterable[str]], args: Iterable[str | int] = ()) -> list[Any]:
        """Runs a script once for each set of keys, in one round trip."""
        script, values = self._script(name), list(args)
        async with self._redis.pipeline(transaction=False) as pipe:
            for keys in calls:
                await script(keys=list(keys), args=values, client=pipe)
            return await pipe.execute()

    async def run_all(self, name: str, calls: Iterable[tuple[Iterable[str], Iterable[str | int]]]) -> list[Any]:
        """Runs a script once for each pair of keys and arguments, in one round trip."""
        script = self._script(name)
        async with self._redis.pipeline(transaction=False) as pipe:
            for keys, args in calls:
                await script(keys=list(keys), args=list(args), client=pipe)
            return await pipe.execute()

    def _script(self, name: str) -> AsyncScript:
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self._redis.register_script(read_script(name))
        return script


def read_script(name: str) -> str:
    """The text of a script, with what stands before it."""
    folder = resources.files(__package__) / "lua"
    text = (folder / f"{name}.lua").read_text(encoding="utf-8")
    if name in _WITHOUT_PRELUDE:
        return text
    prelude = _LEDGER_PRELUDE if name in _OF_LEDGER else _PRELUDE
    return (folder / f"{prelude}.lua").read_text(encoding="utf-8") + text
