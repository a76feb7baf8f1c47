"""`conserve keys create|list|revoke`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from conserve.cli.console import JsonOption, err, fail, name_time, out, show_json, show_table
from conserve.cli.stack_commands import DEFAULT_CONFIG, ConfigOption
from conserve.config import DEFAULT_TENANT, Settings, SettingsError
from conserve.jobs.api_keys import (
    EVERYDAY,
    ApiKeyRecord,
    ApiKeyStore,
    KeyExistsError,
    KeyNameError,
    Scope,
    TooManyKeysError,
)
from conserve.jobs.errors import EmbeddedServerError, NotDurableError, UnsuitableServerError
from conserve.jobs.key_desk import use_keys
from conserve.jobs.link import OUTAGES
from conserve.jobs.window import parse_window
from conserve.launch.serve_config import read_serve_config

app = typer.Typer(
    help="API keys, which are kept in Redis. These commands find that by the configuration, and need no application.",
    no_args_is_help=True,
)

LONGEST_S: Final = 10 * 365 * 86_400
_REFUSALS: Final = (KeyExistsError, KeyNameError, TooManyKeysError)

Answer = TypeVar("Answer")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to call it here: small letters, digits, _ and -.", metavar="NAME")],
    config: ConfigOption = DEFAULT_CONFIG,
    tenant: Annotated[str, typer.Option(help="Whose key it is.")] = DEFAULT_TENANT,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it is good for; may be given several times. Without it, online and offline."),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="How long it is good: such as 12h, 30d; else for ever.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="The most calls with it.", min=1)] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(help="The most tokens, prompt and output, of its online and flex requests.", min=1)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Makes a key and shows it, this once: only its digest is kept."""
    expires_after_s = None if expires is None else _read_time(expires)

    async def make(store: ApiKeyStore) -> tuple[ApiKeyRecord, str]:
        return await store.create(
            name,
            tenant,
            scopes=frozenset(scope) if scope else EVERYDAY,
            expires_after_s=expires_after_s,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )

    record, key = _ask(config, make)
    if as_json:
        show_json({**_to_json(record), "key": key})
        return
    err.print(f"Key {escape(name)} of tenant {escape(tenant)}. It is not shown again:", soft_wrap=True)
    out.print(key, markup=False, soft_wrap=True)


@app.command(name="list")
def list_keys(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Shows the keys that there are, and how each begins; not those of the settings."""
    records = _ask(config, lambda store: store.read())
    if as_json:
        show_json([_to_json(record) for record in records])
        return
    table = Table("key", "begins", "tenant", "scopes", "created", "expires")
    for name in ("requests/min", "tokens/min"):
        table.add_column(name, justify="right")
    now_s = time.time()
    for record in records:
        expires = "[red]expired[/]" if record.is_over(now_s) else name_time(record.expires_at)
        limits = [f"{limit:,}" if limit else "" for limit in (record.requests_per_minute, record.tokens_per_minute)]
        scopes = ", ".join(sorted(record.scopes))
        table.add_row(
            record.name, escape(record.begins), record.tenant, scopes, name_time(record.created_at), expires, *limits
        )
    show_table(table)


@app.command()
def revoke(
    names: Annotated[list[str], typer.Argument(help="Keys, as `list` calls them.", metavar="NAME...")],
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Takes keys away: within 5 s they open nothing. Exit status 1 when one is not there; the others go."""
    revoked = _ask(config, lambda store: store.revoke(names))
    unknown = [name for name in dict.fromkeys(names) if name not in revoked]
    if as_json:
        show_json({"revoked": revoked, "unknown": unknown})
    elif revoked:
        out.print(f"Revoked: {', '.join(revoked)}", markup=False, soft_wrap=True)
    if unknown:
        raise fail(f"there is no key {', '.join(unknown)}: see `conserve keys list`")


def _ask(config: Any, work: Callable[[ApiKeyStore], Awaitable[Answer]]) -> Answer:
    settings = _read_settings(config)
    try:
        return asyncio.run(use_keys(settings, work))
    except _REFUSALS as error:
        raise fail(str(error), 2 if isinstance(error, KeyNameError) else 1) from None
    except (UnsuitableServerError, EmbeddedServerError, NotDurableError) as error:
        raise fail(str(error)) from None
    except OUTAGES as error:
        where = settings.jobs.redis_url.rpartition("@")[2]
        raise fail(f"Redis at {where} cannot be used: {error}. It is `jobs.redis_url`.") from None


def _read_settings(config: Any) -> Settings:
    try:
        return read_serve_config(config).settings
    except SettingsError as error:
        raise fail(str(error), 2) from None


def _read_time(text: str) -> int:
    try:
        return parse_window(text, LONGEST_S)
    except ValueError:
        raise fail(f"--expires: must be minutes, hours or days, such as 12h or 30d (it is {text!r})", 2) from None


def _to_json(record: ApiKeyRecord) -> dict[str, Any]:
    """Without the digest, which is of no use to anybody but a front."""
    return record.model_dump(mode="json", exclude={"digest"}) | {"scopes": sorted(record.scopes)}
