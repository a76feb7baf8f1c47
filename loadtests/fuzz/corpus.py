"""What the fuzzers of the parsers begin with: files as they should be, and as they once were not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

MODEL: Final = "light"
CHAT: Final = "/v1/chat/completions"
DEEP: Final = 990
"""Nested so deeply that Python's reader just takes it, and whoever looks at the value from further down does not."""


def make_line(custom_id: Any, body: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A line of an input file."""
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"model": MODEL, **body}, **more}


def list_inputs() -> Iterator[bytes]:
    """Input files of batches."""
    chat = {"messages": [{"role": "user", "content": "say it"}], "max_tokens": 4}
    good = [json.dumps(make_line(f"id-{number}", chat)) for number in range(3)]
    yield "\n".join(good).encode()
    yield ("\r\n".join(good) + "\n\n \n").encode()
    yield json.dumps(make_line("p", {"prompt": ["one", [1, 2]], "n": 3}, url="/v1/completions")).encode()
    yield json.dumps(make_line("e", {"input": [[1, 2], "text"]}, url="/v1/embeddings")).encode()
    yield "\n".join([good[0], good[0], '{"custom_id": "\\ud800"}', "[]", "nul", "{", '{"a": NaN}']).encode()
    yield b'{"custom_id": 1e999, "method": ' + b"9" * 5_000 + b"}"
    for depth in range(DEEP - 30, DEEP + 15, 5):
        nested = "[" * depth + "]" * depth
        yield json.dumps(make_line("deep", {})).replace('"POST"', nested).encode()
        yield json.dumps(make_line("deep", {"messages": 0})).replace('"messages": 0', f'"messages": {nested}').encode()
    yield b"\xff\xfe\n" + good[1].encode() + b"\n" + b"\x00" * 9


def list_traces() -> Iterator[bytes]:
    """Traces of the formats that are read."""
    azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16T18:15:50Z,396,109\n"
    burst = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation\n"
    mooncake = '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n'
    yield azure.encode()
    yield b"\xef\xbb\xbf" + burst.encode()
    yield (mooncake * 2 + "\n" + mooncake).encode()
    yield (burst + "1e308,m,1,1,2,x\n-1e308,m,1,1,2,x\n").encode()
    yield (azure + f'"{"x" * 140_000}",1,2\n').encode()
    yield azure.encode() + b'"never ended\n\x00,1\n,,,,\n'
    yield (mooncake + '{"timestamp": ' + "[" * 4_000).encode()
    yield (mooncake + '{"timestamp": ' + "9" * 5_000 + "}").encode()
    yield b"\xff\xfe\x00"


WORDS: Final = (
    "custom_id method POST url body model messages role content prompt input stream max_tokens n timestamp "
    "input_length output_length hash_ids TIMESTAMP ContextTokens GeneratedTokens Timestamp true false "
    "null NaN Infinity 1e999 -0 "
    f"{MODEL} {CHAT} /v1/completions /v1/embeddings 9223372036854775808 2023-11-16"
).split()
"""That a mutation alone would not come upon."""
