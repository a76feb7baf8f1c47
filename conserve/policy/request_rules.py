"""What a client may ask of the model: bounds, and fields that would reach further than the model.

vLLM's OpenAI layer takes much that is meant for whoever runs it: files and addresses that it fetches, templates that it
executes, tensors that it loads, peers that it connects to. A request with any of that is refused, over HTTP and gRPC,
online, flex and in a batch, before anything reads more of it than its JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from conserve.policy.constraint_rules import ConstraintError, check_constraints
from conserve.policy.refused_field import RefusedField

FORBIDDEN: Final = {
    "chat_template": "templates of clients are not executed",
    "media_io_kwargs": "how media are read is not for clients to say",
    "mm_processor_kwargs": "how media are processed is not for clients to say",
    "prompt_embeds": "tensors of clients are not loaded",
    "kv_transfer_params": "it names where KV blocks are fetched from",
    "ec_transfer_params": "it names where encodings are fetched from",
    "logits_processors": "code is not named by clients",
    "guided_decoding_backend": "backends are chosen by whoever runs the server",
}
"""Fields that are refused whatever they hold, and why."""
FORBIDDEN_PARTS: Final = frozenset({"image_embeds", "audio_embeds", "video_embeds", "image_pil"})
"""Parts of a message's content that hold tensors or objects."""
MEDIA: Final = {
    "image_url": "url",
    "input_image": "image_url",
    "audio_url": "url",
    "video_url": "url",
    "file": "file_data",
    "input_file": "file_url",
}
"""Parts that may hold an address, and the key under which some of them do."""
MOST_STOPS: Final = 32
LONGEST_STOP: Final = 1_000
"""Each is looked for at each token."""
MOST_OF: Final = {
    "stop_token_ids": 1_024,
    "bad_words": 256,
    "logit_bias": 4_096,
    "allowed_token_ids": 65_536,
    "logprob_token_ids": 1_024,
    "tools": 256,
    "documents": 256,
    "vllm_xargs": 64,
    "chat_template_kwargs": 64,
}
"""Entries of fields whose cost grows with them."""
INPUTS: Final = ("prompt", "input")


@dataclass(frozen=True)
class RequestRules:
    """Bounds that an operator sets.

    Attributes:
        max_prompt_tokens: Of a prompt that is given as tokens; a text may have four characters for each, 16 bytes each.
        max_output_tokens: That may be asked for; None for as many as the model can.
        max_sequences: Answers to one request: `n` of each prompt.
        max_json_depth: Levels of lists and objects.
        media_domains: Hosts that addresses of media may have.
    """

    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    max_sequences: int = 128
    max_json_depth: int = 64
    media_domains: Collection[str] = ()

    def check(self, body: Mapping[str, Any]) -> None:
        """Checks the JSON of a request to a model. Types that are wrong are left to who reads them.

        Raises:
            RefusedField: with the field, and what is allowed.
        """
        check_depth(body, self.max_json_depth)
        for name, reason in FORBIDDEN.items():
            if body.get(name) is not None:
                raise RefusedField(f"'{name}' is not allowed: {reason}.", name)
        self._check_counts(body)
        self._check_tokens(body)
        _check_template_arguments(body)
        for place, part in list_parts(body):
            self._check_part(place, part)
        try:
            check_constraints(body)
        except ConstraintError as error:
            raise RefusedField(str(error), error.param) from None

    def _check_counts(self, body: Mapping[str, Any]) -> None:
        n = body.get("n")
        count = n if isinstance(n, int) else 1
        count *= count_inputs(body.get("prompt"))
        if count > self.max_sequences:
            param = "n" if isinstance(n, int) and n > 1 else "prompt"
            raise RefusedField(
                f"'{param}' asks for {count} answers; a request may have {self.max_sequences}, `n` for each prompt.",
                param,
            )
        stops = body.get("stop")
        if isinstance(stops, list) and len(stops) > MOST_STOPS:
            raise RefusedField(f"'stop' has {len(stops)} entries; {MOST_STOPS} are allowed.", "stop")
        for stop in stops if isinstance(stops, list) else [stops]:
            if isinstance(stop, str) and len(stop) > LONGEST_STOP:
                raise RefusedField(f"'stop' may have {LONGEST_STOP} characters at most.", "stop")
        for name, most in MOST_OF.items():
            value = body.get(name)
            if isinstance(value, list | dict) and len(value) > most:
                raise RefusedField(f"'{name}' has {len(value)} entries; {most} are allowed.", name)

    def _check_tokens(self, body: Mapping[str, Any]) -> None:
        if (most := self.max_output_tokens) is not None:
            for name in ("max_tokens", "max_completion_tokens"):
                value = body.get(name)
                if isinstance(value, int) and value > most:
                    raise RefusedField(f"'{name}' may be {most} at most, not {value}.", name)
        if (most := self.max_prompt_tokens) is None:
            return
        for name in INPUTS:
            for tokens in _list_token_counts(body.get(name)):
                if tokens > most:
                    raise RefusedField(f"'{name}' has about {tokens} tokens or more; {most} are allowed.", name)
        texts = sum(len(text.encode(errors="replace")) for text in _list_texts(body))
        if texts > most * MOST_TOKEN_BYTES:
            raise RefusedField(f"'messages' have {texts} bytes, which is more than {most} tokens have.", "messages")

    def _check_part(self, place: str, part: Mapping[str, Any]) -> None:
        kind = part.get("type")
        for name in FORBIDDEN_PARTS:
            if kind == name or part.get(name) is not None:
                raise RefusedField(f"'{place}.{name}' is not allowed: tensors of clients are not loaded.", place)
        for name, key in MEDIA.items():
            if (value := part.get(name)) is None:
                continue
            for address in [value] if isinstance(value, str) else _list_addresses(value, key):
                self._check_address(f"{place}.{name}", address)

    def _check_address(self, place: str, address: str) -> None:
        if address[:5].lower() == "data:":
            return
        try:
            parts = urlsplit(address)
            scheme, host, has_user = parts.scheme.lower(), parts.hostname, "@" in parts.netloc
        except ValueError:
            scheme, host, has_user = "", None, False
        # What readers of URLs disagree about is no address for us: they would not see the same host.
        is_plain = address.isascii() and address.isprintable() and "\\" not in address and " " not in address
        if scheme == "https" and host in self.media_domains and is_plain and not has_user:
            return
        hosts = ", ".join(sorted(self.media_domains))
        allowed = f"'data:' URLs and https:// at {hosts}" if hosts else "'data:' URLs alone"
        raise RefusedField(f"'{place}' must not name a file or an address; {allowed} are allowed.", place)


MOST_TOKEN_BYTES: Final = 16
"""A text of more bytes than this for each token it may have is not even tokenized."""


def check_depth(value: Any, most: int) -> None:
    """Checks how deep lists and objects are nested.

    Raises:
        RefusedField: deeper than `most`.
    """
    level = [value]
    for _ in range(most):
        level = [one for parent in level for one in _list_children(parent) if isinstance(one, list | dict)]
        if not level:
            return
    raise RefusedField(f"The request is nested deeper than {most} levels.", "body")


def count_inputs(value: Any) -> int:
    """Prompts in a field that may hold a text, tokens, or several of either."""
    return len(value) if isinstance(value, list) and value and not isinstance(value[0], int) else 1


def list_parts(body: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts of all messages, with their places."""
    messages = body.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, Mapping) else None
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, Mapping):
                yield f"messages.{number}.content.{index}", part


def _list_children(value: Any) -> Collection[Any]:
    return value.values() if isinstance(value, dict) else value


def _list_addresses(value: Any, key: str) -> Iterator[str]:
    for name in {key, "url", "image_url", "file_url"} if isinstance(value, Mapping) else ():
        if isinstance(address := value.get(name), str):
            yield address


def _list_token_counts(value: Any) -> Iterator[int]:
    """Tokens of each prompt, or as many as it has at least."""
    if isinstance(value, str):
        yield len(value.encode(errors="replace")) // MOST_TOKEN_BYTES
    elif isinstance(value, list) and value:
        if isinstance(value[0], int):
            yield len(value)
        else:
            for one in value:
                if isinstance(one, str | list):
                    yield from _list_token_counts(one)


def _list_texts(body: Mapping[str, Any]) -> Iterator[str]:
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, Mapping) and isinstance(content := message.get("content"), str):
            yield content
    for _, part in list_parts(body):
        if isinstance(text := part.get("text"), str):
            yield text


def _check_template_arguments(body: Mapping[str, Any]) -> None:
    arguments = body.get("chat_template_kwargs")
    if isinstance(arguments, Mapping) and "chat_template" in arguments:
        raise RefusedField(
            f"'chat_template_kwargs.chat_template' is not allowed: {FORBIDDEN['chat_template']}.",
            "chat_template_kwargs",
        )
