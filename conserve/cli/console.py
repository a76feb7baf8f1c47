"""How the command line speaks: results on standard output, everything else on standard error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import httpx
import openai
import typer
from rich.console import Console
from rich.markup import escape

from conserve.launch.serve_config import DEFAULT_HTTP_PORT

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_HTTP_PORT}"

UrlOption = Annotated[
    str, typer.Option("--url", envvar="CONSERVE_URL", help="Where the application listens.", metavar="URL")
]


def say_progress(line: str) -> None:
    """Shows one step of something that takes a while."""
    err.print(line, style="dim", markup=False)


def fail(message: str, code: int = 1) -> typer.Exit:
    """Shows an error; raise what it returns."""
    err.print(f"[bold red]error:[/] {escape(message)}", markup=True, soft_wrap=True)
    return typer.Exit(code)


def make_client(url: str) -> openai.OpenAI:
    """A client of the application. Its key is whatever `OPENAI_API_KEY` says; without tenants none is needed."""
    return openai.OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))


@contextmanager
def explain_errors(url: str) -> Iterator[None]:
    """Turns what goes wrong in a call to the application into one line and exit status 1."""
    try:
        yield
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        raise fail(f"{body.get('message') or error.message} (HTTP {error.status_code})") from None
    except (openai.APIConnectionError, httpx.TransportError):
        raise fail(f"nothing answers at {url}. Is the application up? (`conserve up`, `conserve status`)") from None
    except openai.APIError as error:  # an error in the middle of a stream, or an answer that is none of the API's
        raise fail(error.message) from None
    except httpx.InvalidURL as error:
        raise fail(f"--url: {url!r} is no URL: {error}", 2) from None
