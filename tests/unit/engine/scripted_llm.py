"""An `AsyncLLM` that says what it is told to, through vLLM's own front end: its detokenizer and its outputs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from conserve.engine.vllm_compat import SamplingParams
from conserve.policy.resumption import EndRule

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Each byte is a token, so most characters beyond ASCII are several; `<eos>` and `<end>` are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", "<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


class ScriptedLLM:
    """Answers `prompt` with `answer`, whatever part of it stands in the prompt already.

    Attributes:
        generated: Tokens that were made, of all requests.
        asked: Prompts with which `generate` was called.
    """

    def __init__(self, prompt: str, answer: str) -> None:
        self.tokenizer = make_tokenizer()
        self.renderer = SimpleNamespace(tokenizer=self.tokenizer)
        self.input_processor = self
        self.vllm_config = SimpleNamespace(watermark_config=None, model_config=SimpleNamespace(logits_processors=None))
        self.prompt = {"type": "token", "prompt": prompt, "prompt_token_ids": self.encode(prompt)}
        self.answer = self.encode(answer)
        self.eos_token_id = self.tokenizer.eos_token_id
        self.end_token_id = self.tokenizer.convert_tokens_to_ids("<end>")
        self.generated = 0
        self.asked: list[Mapping[str, Any]] = []

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def process_inputs(
        self, request_id: str, prompt: Mapping[str, Any], params: SamplingParams, supported_tasks: Sequence[str]
    ) -> EngineCoreRequest:
        """As vLLM's `InputProcessor` does; the model's configuration names a second token that ends an answer."""
        params = params.clone()
        config = {"eos_token_id": [self.eos_token_id, self.end_token_id]}
        params.update_from_generation_config(config, self.eos_token_id)
        return EngineCoreRequest(
            request_id=request_id,
            external_req_id=request_id,
            prompt_token_ids=prompt["prompt_token_ids"],
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )

    async def generate(
        self, prompt: Mapping[str, Any], sampling_params: SamplingParams, request_id: str, **_: Any
    ) -> AsyncGenerator[Any, None]:
        self.asked.append(prompt)
        request = self.process_inputs(request_id, prompt, sampling_params, ("generate",))
        params = request.sampling_params
        assert params is not None
        processor = OutputProcessor(self.tokenizer, log_stats=False)
        queue = RequestOutputCollector(params.output_kind, request_id)
        processor.add_request(request, prompt.get("prompt"), None, 0, queue)
        stops = frozenset(params.stop_token_ids or ())
        rule = EndRule(params.max_tokens, params.eos_token_id, stops)
        made: list[int] = []
        while True:
            await asyncio.sleep(0)
            place = len(prompt["prompt_token_ids"]) + len(made) - len(self.prompt["prompt_token_ids"])
            token = self.answer[place % len(self.answer)]
            if len(made) < params.min_tokens and token in params.all_stop_token_ids:
                token = self.encode("_")[0]
            made.append(token)
            self.generated += 1
            ending = rule.find_ending(made)
            output = EngineCoreOutput(
                request_id,
                [token],
                finish_reason=_REASONS[ending.finish_reason] if ending else None,
                stop_reason=ending.stop_reason if ending else None,
            )
            processor.process_outputs([output])
            if (found := queue.get_nowait()) is not None:
                yield found
                if found.finished:
                    return
