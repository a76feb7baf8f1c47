"""What continuing requests needs of vLLM's front end: detokenizer, outputs, parameters. As `vllm_compat`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine.detokenizer import IncrementalDetokenizer  # unstable

from conserve.engine.vllm_compat import RequestOutputKind, SamplingParams
from conserve.policy.resumption import Ending, EndRule

FRONT_RELIED_ON: Final = {
    "llm": ("generate", "input_processor", "renderer", "vllm_config"),
    "input_processor": ("process_inputs",),
    "sampling_params": (
        *("clone", "output_kind", "stream_interval", "detokenize", "stop", "max_tokens", "min_tokens", "temperature"),
        *("eos_token_id", "stop_token_ids"),
    ),
    "request_state_stats": ("queued_ts", "scheduled_ts"),
    "detokenizer": ("update", "get_next_output_text", "output_token_ids"),
}
"""Attributes of vLLM's objects that are used here and in `continuation`, by object."""

_HARMLESS = frozenset(
    {
        *("max_tokens", "min_tokens", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos"),
        *("temperature", "top_p", "top_k", "min_p", "seed", "logit_bias", "allowed_token_ids"),
        *("skip_special_tokens", "spaces_between_special_tokens", "stream_interval", "skip_clone"),
        *("output_text_buffer_length", "_eos_token_id", "_all_stop_token_ids"),
    }
)
"""Sampling parameters that may be anything; `policy.resumption` says why. The others must be as vLLM sets them."""
_OURS = {"output_kind": RequestOutputKind.FINAL_ONLY}


def has_harmless_params(params: SamplingParams) -> bool:
    """Whether a request with these parameters can be continued: its body alone does not show the model's defaults."""
    defaults = SamplingParams()
    expected = {name: getattr(defaults, name) for name in params.__struct_fields__ if name not in _HARMLESS} | _OURS
    return params.temperature == 0 and all(_equals(getattr(params, name), value) for name, value in expected.items())


def has_harmless_engine(llm: Any) -> bool:
    """Whether an engine adds nothing to requests that would see where the prompt ends."""
    config = llm.vllm_config
    adds = (
        getattr(config, "watermark_config", None),
        getattr(config.model_config, "logits_processors", None),
        getattr(getattr(config, "aux_output_config", None), "enabled", False),
    )
    return not any(adds)


def to_pieces(params: SamplingParams, piece: int) -> SamplingParams:
    """The same, with outputs that come while the request runs: at the first token, then of `piece` new ones each."""
    changed = params.clone()
    changed.output_kind = RequestOutputKind.DELTA
    changed.stream_interval = piece
    return changed


def to_rest(params: SamplingParams, known: int, piece: int) -> SamplingParams:
    """The same for what comes behind the first `known` tokens, which stand in the prompt.

    In pieces without text: that is made of all tokens together, and stop strings are looked for there.
    """
    rest = to_pieces(params, piece)
    rest.max_tokens = params.max_tokens - known
    rest.min_tokens = max(0, params.min_tokens - known)
    rest.stop = []
    rest.detokenize = False
    return rest


def begin_text(
    llm: Any, prompt: Mapping[str, Any], params: SamplingParams, request_id: str
) -> tuple[IncrementalDetokenizer, EndRule]:
    """What vLLM would make the text of a request's answer with, and where the answer ends.

    Raises:
        ValueError: vLLM refuses the request.
    """
    request = llm.input_processor.process_inputs(request_id, prompt, params.clone(), supported_tasks=("generate",))
    settled = request.sampling_params
    detokenizer = IncrementalDetokenizer.from_new_request(llm.renderer.tokenizer, request)
    rule = EndRule(settled.max_tokens, settled.eos_token_id, frozenset(settled.stop_token_ids or ()))
    return detokenizer, rule


def make_output(request_id: str, prompt: Mapping[str, Any]) -> RequestOutput:
    """An output of a request that no engine has run."""
    answer = CompletionOutput(index=0, text="", token_ids=[], cumulative_logprob=None, logprobs=None)
    text, token_ids = prompt.get("prompt"), prompt["prompt_token_ids"]
    return RequestOutput(request_id, text, token_ids, None, [answer], finished=True, num_cached_tokens=0)


def fill_output(
    output: RequestOutput, prompt: Mapping[str, Any], text: str, token_ids: Sequence[int], ending: Ending
) -> RequestOutput:
    """Makes an output that of the whole answer to the prompt as the client has sent it."""
    (answer,) = output.outputs
    answer.text, answer.token_ids = text, list(token_ids)
    answer.finish_reason, answer.stop_reason = ending.finish_reason, ending.stop_reason
    output.prompt, output.prompt_token_ids = prompt.get("prompt"), prompt["prompt_token_ids"]
    if output.num_cached_tokens is not None:
        output.num_cached_tokens = min(output.num_cached_tokens, len(output.prompt_token_ids))
    output.finished = True
    return output


def find_queued_s(output: Any) -> float | None:
    """How long the request of an output has waited until an iteration took it in; None where vLLM keeps no times."""
    times = output.metrics
    if times is None or not times.scheduled_ts:
        return None
    return max(0.0, float(times.scheduled_ts - times.queued_ts))


def _equals(value: Any, other: Any) -> bool:
    numbers = isinstance(value, int | float) and isinstance(other, int | float)
    return value is other or ((numbers or type(value) is type(other)) and bool(value == other))
