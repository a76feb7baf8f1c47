"""Settings of what is taken in: of online requests when there are too many, and of each request."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from conserve.config.section import Section as _Section

_HOST = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))+")


class OverloadSettings(_Section):
    """Online requests beyond capacity are refused at once, with 429 and `Retry-After`, by the replica."""

    refuse: bool = Field(
        True,
        description="Whether those are refused that would come late, or make others late, by what the replica predicts "
        "and the objectives of `slo`.",
    )
    ttft_share: float = Field(
        0.9, gt=0, le=100, description="The predicted time to the first token may be this part of the objective."
    )
    grace_s: float = Field(
        2.0,
        ge=0,
        le=60,
        description="So long requests have to come late before any is refused for that: a burst, whose first tokens "
        "come within four times the objective, is no overload.",
    )
    max_waiting_requests: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Online requests that may wait for their first token at one replica, of a class and those before "
        "it; in any case, whatever `refuse` is.",
    )


class RequestSettings(_Section):
    """What one request may ask of the model: online, flex, and in a batch."""

    max_prompt_tokens: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="Tokens of a prompt, refused before it is tokenized where it cannot have fewer; by default those "
        "that the model takes.",
    )
    max_output_tokens: int | None = Field(
        None, ge=1, le=100_000_000, description="What `max_tokens` may be; by default as much as the model can."
    )
    max_sequences: int = Field(
        128, ge=1, le=100_000, description="Answers to one request: `n`, for each prompt of a list."
    )
    max_json_depth: int = Field(64, ge=8, le=500, description="Levels of lists and objects in its JSON.")
    media_domains: list[str] = Field(
        default_factory=list,
        max_length=1_000,
        description="Hosts that images, audio and video may be fetched from, by https. Without any, requests may hold "
        "media (`data:` URLs), but name none.",
    )

    @field_validator("media_domains")
    @classmethod
    def _check_hosts(cls, value: list[str]) -> list[str]:
        for host in value:
            if not _HOST.fullmatch(host) or host.rpartition(".")[2].isdigit():
                raise ValueError(f"{host!r} is no host name in lower case, such as images.example.org")
        return value
