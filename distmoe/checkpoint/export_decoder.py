"""A decoder in the form in which it is exported: values of config.json, and tensors under their exported names.

Rotary positions are exported as the table of frequencies that their scaling gives, so that the modelling code of an
export knows no scaling.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import distmoe
from distmoe.checkpoint.export_folder import VERSION_KEY
from distmoe.checkpoint.export_routed import exported_routed
from distmoe.models.config import ModelConfig
from distmoe.models.multitask_decoder import MultiTaskDecoder
from distmoe.moe.layer import RoutedFeedForward
from distmoe.nn.rotary import frequencies
from distmoe.tasks import TaskGrouping, TaskSet

CODE_FILES = (
    "configuration_distmoe.py",
    "modeling_distmoe.py",
    "configuration_distmoe_decoder.py",
    "modeling_distmoe_decoder.py",
)
SELF_CONTAINED = "DistmoeForCausalLM"
_ROUTED_PARTS = (".feed_forward.gate.", ".feed_forward.pools.")


def decoder_tensors(
    model: MultiTaskDecoder, *, config: ModelConfig, grouping: TaskGrouping
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Returns all tensors under distmoe's names, experts stacked, and the entries of the routed layers."""
    tensors: dict[str, Tensor] = {
        name: value for name, value in model.named_parameters() if not any(part in name for part in _ROUTED_PARTS)
    }
    entries: list[dict[str, Any]] = []
    for index, layer in enumerate(model.decoder.layers):
        routed = layer.feed_forward
        if isinstance(routed, RoutedFeedForward):
            assert config.moe is not None
            task_groups = grouping.layers[len(entries)]
            entry, of_layer = exported_routed(routed, moe=config.moe, layer=index, task_groups=task_groups)
            tensors |= {f"decoder.layers.{index}.feed_forward.{name}": value for name, value in of_layer.items()}
            entries.append(entry)
    return {name: value.detach().float().contiguous().clone() for name, value in tensors.items()}, entries


def prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the exported modelling code has them."""
    return {name if name.startswith("heads.") else f"distmoe.{name}": value for name, value in tensors.items()}


def token_tasks(tasks: TaskSet, prompt: str | None) -> list[dict[str, Any]]:
    """The entries of the tasks; those of generation tasks say what a text must be put into before it is answered."""
    rows = zip(tasks.to_json(), tasks, strict=True)
    return [
        row | {"num_outputs": spec.num_outputs} | ({"prompt": prompt} if spec.kind == "generation" else {})
        for row, spec in rows
    ]


def decoder_values(
    model: MultiTaskDecoder,
    *,
    config: ModelConfig,
    tasks: TaskSet,
    routed_entries: list[dict[str, Any]],
    head: str,
    special_tokens: dict[str, int],
    prompt: str | None,
) -> dict[str, Any]:
    """Returns the values of config.json.

    Args:
        model: A whole model.
        config: Section ``model`` that it was built with.
        tasks: That the export has.
        routed_entries: Of the layers that are routed in the export.
        head: Its kind in the export.
        special_tokens: ``bos_token_id`` and ``eos_token_id``, where they are known.
        prompt: Template of the prompts of generation tasks.
    """
    shape = model.shape
    table_d2, scale = frequencies(shape.rotary, head_size=shape.head_size, max_positions=shape.max_positions)
    return {
        "architectures": [SELF_CONTAINED],
        "auto_map": {
            "AutoConfig": "configuration_distmoe_decoder.DistmoeDecoderConfig",
            "AutoModel": "modeling_distmoe_decoder.DistmoeDecoderModel",
            "AutoModelForCausalLM": f"modeling_distmoe_decoder.{SELF_CONTAINED}",
        },
        "model_type": "distmoe_decoder",
        "dtype": "float32",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_size,
        "intermediate_size": shape.intermediate_size,
        "hidden_act": shape.activation,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rotary_frequencies": table_d2.tolist(),
        "rotary_scale": scale,
        "qk_norm": shape.qk_norm,
        "attention_bias": shape.attention_bias,
        "attention_out_bias": shape.attention_out_bias,
        "attention_window": shape.sliding_window,
        "head": head,
        "pad_token_id": shape.pad_token_id,
        **special_tokens,
        "initializer_range": config.init_std,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "tasks": token_tasks(tasks, prompt),
        "routed_layers": routed_entries,
        VERSION_KEY: distmoe.__version__,
    }
