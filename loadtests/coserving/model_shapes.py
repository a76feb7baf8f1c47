"""Models of a known shape with random weights: what they compute costs the same, and nothing has to be fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

RANDOM_WEIGHTS: Final[dict[str, Any]] = {"load_format": "dummy", "skip_tokenizer_init": True}
"""vLLM's engine arguments for such a model."""

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "llama-3.1-8b-random": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "vocab_size": 128_256,
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
        "tie_word_embeddings": False,
    },
}


def write_shape(name: str, folder: Path) -> Path:
    """Writes what vLLM needs to know of the model into a folder of its name, and returns that."""
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(SHAPES[name], indent=2) + "\n", encoding="utf-8")
    return path
