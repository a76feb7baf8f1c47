"""`conserve chat`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import httpx
import typer

from conserve.cli.console import JsonOption, UrlOption, fail, nothing_answers, out, read_url, show_json
from conserve.client.async_client import DEFAULT_URL, find_key
from conserve.client.transport import explain_untrusted, is_untrusted


def chat(
    message: Annotated[str, typer.Argument(help="What to say.")],
    url: UrlOption = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="By default the first one that is served.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Length of the answer, at most.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 always gives the likeliest answer.", min=0, max=2)] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Asks the model one thing and shows its answer as it comes."""
    base_url = f"{read_url(url)}/v1"
    with _explain_errors(url):
        from openai import OpenAI  # It takes a second to load, for which the other commands need not wait.

        # Without tenants no key is needed, but OpenAI's client wants one.
        client = OpenAI(base_url=base_url, api_key=find_key(None) or "none")
        if model is None:
            models = client.models.list().data
            if not models:
                raise fail("no model is served")
            model = models[0].id
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": message}],
            max_tokens=max_tokens,
            temperature=temperature,
            stream=True,
        )
        said = []
        try:
            for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    said.append(chunk.choices[0].delta.content)
                    if not as_json:
                        out.print(said[-1], end="", markup=False, soft_wrap=True)
        finally:
            if said and not as_json:
                out.print()  # What is said of an answer that breaks off stands on a line of its own.
        if as_json:
            show_json({"model": model, "answer": "".join(said)})


@contextmanager
def _explain_errors(url: str) -> Iterator[None]:
    """As `console.explain_errors`, of OpenAI's client."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        raise fail(f"{body.get('message') or error.message} (HTTP {error.status_code})") from None
    except (openai.APIConnectionError, httpx.TransportError) as error:
        raise fail(explain_untrusted(url) if is_untrusted(error) else nothing_answers(url)) from None
    except openai.APIError as error:  # an error in the middle of a stream, or an answer that is none of the API's
        raise fail(error.message) from None
