"""Small Hugging Face folders of decoders for tests, made with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, biases, llama3 positions": (
        "llama", {"tie_word_embeddings": True, "attention_bias": True, "rope_parameters": LLAMA3},
    ),
    "mistral, sliding window, wide heads": ("mistral", {"sliding_window": 3, "head_dim": 8}),
    "mistral, linear positions": ("mistral", {"sliding_window": None, "rope_parameters": LINEAR}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn positions": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 8}),
}  # fmt: skip


def hf_decoder(name: str) -> PreTrainedModel:
    """A random model whose biases and norms are not those of a fresh one."""
    kind, changes = FOLDERS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(_SMALL | changes)))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias") or "norm" in key:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def save_decoder(folder: Path, name: str, **options: Any) -> PreTrainedModel:
    model = hf_decoder(name)
    model.save_pretrained(folder, **options)
    return model
