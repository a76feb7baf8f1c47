"""`conserve chat`."""

from __future__ import annotations

from typing import Annotated

import typer

from conserve.cli.console import DEFAULT_URL, UrlOption, explain_errors, fail, make_client, out


def chat(
    message: Annotated[str, typer.Argument(help="What to say.")],
    url: UrlOption = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="By default the first one that is served.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Length of the answer, at most.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 always gives the likeliest answer.", min=0, max=2)] = 0.0,
) -> None:
    """Asks the model one thing and shows its answer as it comes."""
    client = make_client(url)
    with explain_errors(url):
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
        shown = False
        try:
            for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    out.print(chunk.choices[0].delta.content, end="", markup=False, soft_wrap=True)
                    shown = True
        finally:
            if shown:
                out.print()  # What is said of an answer that breaks off stands on a line of its own.
