"""Which stock class of transformers computes a decoder exactly, and its tensors and configuration; or why none does.

Dense: Llama, Mistral, Qwen2, Qwen3. Routed by token inside one task group: Mixtral (every layer routed) and Qwen3-MoE
(queries and keys normalised, any set of layers), whose routers are one linear map, a softmax over all experts and the
``top_k`` largest, with their weights summing to 1 or, Qwen3-MoE, as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from distmoe.checkpoint import decoder_keys
from distmoe.checkpoint.key_tables import split
from distmoe.models.decoder_shape import DECODER_TYPES, DecoderShape

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


@dataclass(frozen=True)
class Stock:
    """A stock class that fits.

    Attributes:
        kind: Its ``model_type``.
        normalises: Whether the weights of the chosen experts are to sum to 1; only Qwen3-MoE has the choice.
    """

    kind: str
    normalises: bool = True

    @property
    def architecture(self) -> str:
        return _CLASSES[self.kind]


def find_stock(shape: DecoderShape, entries: list[dict[str, Any]]) -> tuple[Stock | None, tuple[str, ...]]:
    """Returns the class that computes a decoder with these routed layers, or the reasons why there is none.

    Args:
        shape: Of the decoder.
        entries: Of the layers that are still routed after one task was cut out.
    """
    if not entries:
        return _dense(shape)
    reasons = _routing_reasons(entries)
    plain = not shape.qk_norm and not shape.attention_bias and not shape.attention_out_bias
    of_all_layers = len(entries) == shape.num_layers
    if plain and not of_all_layers:
        routed = ", ".join(str(entry["layer"]) for entry in entries)
        reasons.append(f"only layers {routed} are routed: in Mixtral every layer is")
    if not plain and not (shape.qk_norm and shape.attention_bias == shape.attention_out_bias):
        reasons.append("its attention has biases: Mixtral and Qwen3-MoE have none, or all")
    if not plain and shape.sliding_window is not None:
        reasons.append("it has a sliding window: Qwen3-MoE is taken without")
    combine, top_k = entries[0]["combine"], entries[0]["top_k"]
    normalises = combine == "renorm" or (combine == "straight_through" and top_k == 1)
    if combine == "straight_through" and top_k > 1:
        reasons.append(f"its {top_k} experts weigh equally: stock routers weigh them by probability")
    elif not normalises and plain:
        reasons.append("the weights of its experts do not sum to 1: in Mixtral they do")
    if reasons:
        return None, tuple(reasons)
    return Stock("mixtral" if plain else "qwen3_moe", normalises), ()


def _dense(shape: DecoderShape) -> tuple[Stock | None, tuple[str, ...]]:
    biases = (shape.attention_bias, shape.attention_out_bias)
    plain, window = biases == (False, False), shape.sliding_window is not None
    divides = shape.head_size * shape.num_heads == shape.hidden_size
    fits = {
        "llama": not shape.qk_norm and biases[0] == biases[1] and not window,
        "mistral": not shape.qk_norm and plain,
        "qwen2": not shape.qk_norm and biases == (True, False) and divides,
        "qwen3": shape.qk_norm and biases[0] == biases[1],
    }
    own = (shape.family,) if shape.family in fits else ()
    for kind in (*own, *DECODER_TYPES):
        if fits[kind]:
            return Stock(kind), ()
    have = f"biases {biases}, query and key norms {shape.qk_norm}, head width {shape.head_size}, window {window}"
    return None, (f"no stock class has this attention ({have})",)


def _routing_reasons(entries: list[dict[str, Any]]) -> list[str]:
    """What a stock router cannot compute."""
    reasons = []
    layers = ", ".join(str(entry["layer"]) for entry in entries)
    if any(entry["gate"]["granularity"] == "task" for entry in entries):
        widths = ", ".join(f"layer {entry['layer']}: {entry['expert_size']}" for entry in entries)
        reasons.append(f"the task's experts are of another width together than a dense layer ({widths})")
        return reasons
    gate = entries[0]["gate"]
    if gate["form"] != "linear" or gate.get("biased") or gate.get("scaled"):
        reasons.append(f"gate {gate['kind']} at layers {layers} is more than one linear map of the token")
    if any(entry["shared_size"] for entry in entries):
        reasons.append("it has a shared expert that stock classes weigh or lack")
    sizes = {(entry["num_experts"], entry["expert_size"]) for entry in entries}
    if len(sizes) > 1:
        reasons.append(f"its layers differ in experts or their width: {sorted(sizes)}")
    return reasons


def stock_tensors(
    stock: Stock, tensors: Mapping[str, Tensor], shape: DecoderShape, entries: list[dict[str, Any]]
) -> dict[str, Tensor]:
    """Returns the tensors of one task under the names of the class.

    Args:
        stock: From :func:`find_stock`.
        tensors: Of the task, under distmoe's names; a head of its own as ``heads.weight_VD``.
        shape: Of the decoder.
        entries: Of the layers that are still routed.
    """
    rows = decoder_keys.rows(replace(shape, tied=decoder_keys.HEAD not in tensors))
    routed = tuple(f"decoder.layers.{entry['layer']}.feed_forward." for entry in entries)
    found = split({name: value for name, value in tensors.items() if not name.startswith(routed)}, rows)
    for entry in entries:
        index = entry["layer"]
        inside = f"decoder.layers.{index}.feed_forward."
        block = f"model.layers.{index}." + ("block_sparse_moe" if stock.kind == "mixtral" else "mlp")
        gate_up_down = ("w1", "w3", "w2") if stock.kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        router = tensors.get(f"{inside}gate.weight_ED")
        found[f"{block}.gate.weight"] = tensors[f"{inside}gate.weight_MED"][0] if router is None else router
        pairs = zip(tensors[f"{inside}w_in"], tensors[f"{inside}w_out"], strict=True)
        for expert, (w_in, w_out) in enumerate(pairs):
            parts = zip(gate_up_down, (*w_in.chunk(2), w_out), strict=True)
            found |= {f"{block}.experts.{expert}.{name}.weight": value for name, value in parts}
    return {name: value.contiguous().clone() for name, value in found.items()}


def stock_values(
    stock: Stock, shape: DecoderShape, entries: list[dict[str, Any]], *, width: int, tied: bool
) -> dict[str, Any]:
    """Returns the values of config.json, without tasks.

    Args:
        stock: From :func:`find_stock`.
        shape: Of the decoder.
        entries: Of the layers that are still routed.
        width: Of dense layers.
        tied: Whether the token table is the head.
    """
    values: dict[str, Any] = {
        "architectures": [stock.architecture],
        "model_type": stock.kind,
        "dtype": "float32",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_size,
        "intermediate_size": width,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": tied,
        "rope_theta": shape.rotary.base,
        "rope_scaling": _rope_scaling(shape),
    }
    if stock.kind in ("llama", "qwen3", "qwen3_moe"):
        values["attention_bias"] = shape.attention_bias
    if stock.kind in ("mistral", "mixtral"):
        values["sliding_window"] = shape.sliding_window
    if stock.kind.startswith("qwen"):
        window = shape.sliding_window
        values |= {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": 0}
    if entries:
        values |= {"num_experts_per_tok": entries[0]["top_k"], "router_aux_loss_coef": 0.0}
    count, size = (entries[0]["num_experts"], entries[0]["expert_size"]) if entries else (0, 0)
    if stock.kind == "mixtral":
        values |= {"num_local_experts": count, "intermediate_size": size}
    if stock.kind == "qwen3_moe":
        routed = {entry["layer"] for entry in entries}
        dense = [layer for layer in range(shape.num_layers) if layer not in routed]
        values |= {
            "num_experts": count,
            "moe_intermediate_size": size,
            "norm_topk_prob": stock.normalises,
            "mlp_only_layers": dense,
            "decoder_sparse_step": 1,
        }
    return values


def _rope_scaling(shape: DecoderShape) -> dict[str, Any] | None:
    rotary = shape.rotary
    if rotary.scaling == "default":
        return None
    values: dict[str, Any] = {"rope_type": rotary.scaling, "factor": rotary.factor}
    if rotary.scaling == "linear":
        return values
    values["original_max_position_embeddings"] = rotary.original_max_positions or shape.max_positions
    keys = ("low_freq_factor", "high_freq_factor") if rotary.scaling == "llama3" else ("beta_fast", "beta_slow")
    values |= {key: getattr(rotary, key) for key in keys}
    if rotary.scaling == "yarn" and rotary.attention_factor is not None:
        values["attention_factor"] = rotary.attention_factor
    return values
