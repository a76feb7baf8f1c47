"""A model of random weights, small enough for hundreds of iterations in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

TOKEN_IDS = range(2048)
MAX_LENGTH = 512
LAYERS = 3


def save_tiny_llama(folder: Path) -> None:
    """Writes it in the Hugging Face layout."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKEN_IDS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.1,  # each token of the context has a say in what follows
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@torch.no_grad()
def measure_leads(model: LlamaForCausalLM, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
    """How much higher the logit of each token of an output is than that of any other token."""
    logits = model(torch.tensor([[*prompt, *output]]), logits_to_keep=len(output) + 1).logits[0, :-1]
    chosen = logits.gather(1, torch.tensor(output)[:, None])
    others = logits.scatter(1, torch.tensor(output)[:, None], -torch.inf).amax(1)
    return chosen[:, 0] - others
