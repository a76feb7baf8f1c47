"""The options that the load tests add to locust's command line, and its web page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from loadtests.front.schedule import ARRIVALS, OnlinePlan
from loadtests.trace_source import Kind


def add_options(parser: Any) -> None:
    """Adds them to locust's parser."""
    group = parser.add_argument_group("ConServe: online requests", "Streaming chats in an open loop")
    group.add_argument("--online-s", type=float, default=60.0, help="Seconds in which chats are due")
    group.add_argument("--rate", type=float, default=0.7, help="Chats a second, on average; 0 for none")
    group.add_argument("--arrivals", choices=ARRIVALS, default="trace", help="Gaps between chats")
    group.add_argument("--cv", type=float, default=3.0, help="Variation of the gaps, of --arrivals gamma")
    group.add_argument("--tide-ratio", type=float, default=10.0, help="High over low rate, of --arrivals tide")
    group.add_argument(
        "--traces", default="", help="A trace or a folder of traces (Azure, BurstGPT, Mooncake); else generated ones"
    )
    group.add_argument("--kind", choices=get_args(Kind), default="conv", help="Which trace, or whose statistics")
    group.add_argument("--length-scale", type=float, default=0.125, help="Lengths of the trace are multiplied by this")
    group.add_argument("--max-prompt-tokens", type=int, default=2048, help="Longer prompts are cut")
    group.add_argument("--max-output-tokens", type=int, default=512, help="Longer outputs are cut")
    group.add_argument("--chat-timeout-s", type=float, default=60.0, help="Bound of one chat")
    group.add_argument("--any-length", action="store_true", help="Outputs may end early (for servers other than vLLM)")
    group.add_argument("--seed", type=int, default=7, help="Of arrivals and lengths")
    group.add_argument("--words-seed", type=int, default=1, help="Of the words: other ones are in no prefix cache")
    group.add_argument("--grpc", default="", help="Chats go over gRPC to this HOST:PORT, instead of over HTTP")
    group.add_argument("--model", default="", help="By default the first one that is served")
    group = parser.add_argument_group("ConServe: batches", "Batches that are submitted and polled")
    group.add_argument("--batches", type=int, default=0, help="How many are submitted")
    group.add_argument("--batch-requests", type=int, default=100, help="Requests of each")
    group.add_argument("--batch-every-s", type=float, default=10.0, help="Seconds between two submissions")
    group.add_argument("--batch-words", type=int, default=200, help="Length of their prompts")
    group.add_argument("--batch-output-tokens", type=int, default=48, help="Most tokens of their outputs")
    group.add_argument("--poll-s", type=float, default=1.0, help="Seconds between two polls of a batch")
    group.add_argument("--batch-wait-s", type=float, default=0.0, help="Batches may end so long after the chats")
    group.add_argument("--records", default="", help="File for all records, as JSON lines")
    group.add_argument("--summary", default="", help="File for the exact percentiles, as JSON")


def to_plan(options: Any) -> OnlinePlan:
    """The online load that parsed options ask for. Raises `ValueError`: one of them is wrong."""
    return OnlinePlan(
        duration_s=options.online_s,
        rate_per_s=options.rate,
        arrivals=options.arrivals,
        kind=options.kind,
        traces=Path(options.traces) if options.traces else None,
        cv=options.cv,
        tide_ratio=options.tide_ratio,
        length_scale=options.length_scale,
        max_prompt_tokens=options.max_prompt_tokens,
        max_output_tokens=options.max_output_tokens,
        seed=options.seed,
    )
