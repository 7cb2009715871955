"""Conditional modules in the form in which they are exported: what they generate is a constant per task, so a table.

The modelling code of an export then has no task embeddings and no generators. For one task the tables have one row, and
scales and shifts behind a LayerNorm become a part of it::

    s (n w + b) + t  =  n (s w) + (s b + t)

Tables have the names of the modules that they stand for: ``scale_MD``, ``shift_MD`` of an alignment, of a LayerNorm
(without its own weight and bias) and of an adapter's input; ``values_MLs`` of an attention bias.

Shape letters: M tasks, D model width, L biased positions, s side of a block, r width of an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from distmoe.models.encoder import Encoder
from distmoe.nn.conditional.attention import ConditionalAttentionBias
from distmoe.nn.conditional.bottleneck import ConditionalBottleneck
from distmoe.nn.conditional.conditioning import Conditioning
from distmoe.nn.conditional.config import ConditionalConfig
from distmoe.nn.conditional.film import layer_norm_of
from distmoe.nn.conditional.layer_norm import ConditionalLayerNorm
from distmoe.nn.conditional.module import conditional_parameters
from distmoe.nn.conditional.published import PublishedBlock, PublishedTopAdapter

_NORMS = ("attention_norm", "feed_forward_norm")


@dataclass(frozen=True)
class ConditionalExport:
    """Conditional modules of an encoder, without generators.

    Attributes:
        entry: What the configuration says about them (``conditional``).
        tensors: Tables by the encoder's names.
        replaced: Parameters of the encoder that these stand for.
    """

    entry: dict[str, Any]
    tensors: dict[str, Tensor]
    replaced: frozenset[str]


@torch.no_grad()
def exported_conditional(encoder: Encoder, config: ConditionalConfig) -> ConditionalExport:
    """Returns the tables of all tasks.

    Args:
        encoder: With conditional modules, float32.
        config: Section that they were built with.
    """
    assert encoder.conditioner is not None, "nothing is conditioned"
    every_M = encoder.conditioner(torch.arange(encoder.conditioner.num_tasks))
    entry: dict[str, Any] = {"alignment": encoder.alignment is not None, "layer_norm": [], "attention": None,
                             "adapters": {}, "chain": None}  # fmt: skip
    tensors: dict[str, Tensor] = {}
    replaced = set(conditional_parameters(encoder))
    if encoder.alignment is not None:
        gamma_MD, beta_MD = encoder.alignment.generated(every_M)
        tensors |= {"alignment.scale_MD": 1 + gamma_MD, "alignment.shift_MD": beta_MD}
    for index, layer in enumerate(encoder.layers):
        prefix = f"layers.{index}."
        if isinstance(layer.attention_norm, ConditionalLayerNorm):
            entry["layer_norm"].append(index)
            for name in _NORMS:
                tensors |= _norm(prefix + name, getattr(layer, name), every_M)
                replaced |= {f"{prefix}{name}.weight", f"{prefix}{name}.bias"}
        if layer.attention_bias is not None:
            assert isinstance(layer.attention_bias, ConditionalAttentionBias)
            values_MLs = layer.attention_bias.values(every_M)
            tensors[f"{prefix}attention_bias.values_MLs"] = values_MLs
            attention = entry["attention"] or {"layers": []}
            entry["attention"] = {
                "layers": [*attention["layers"], index],
                "max_length": values_MLs.shape[1],
                "block_side": values_MLs.shape[2],
            }
        if layer.bottleneck is not None:
            assert isinstance(layer.bottleneck, (ConditionalBottleneck, PublishedTopAdapter))
            found, entry["adapters"][str(index)] = _adapter(layer.bottleneck, every_M, config)
            tensors |= {f"{prefix}bottleneck.{name}": value for name, value in found.items()}
    if encoder.chain is not None:
        adapters = [_adapter(cast(PublishedBlock, block), every_M, config) for block in encoder.chain.blocks]
        entry["chain"] = adapters[0][1]
        tensors |= {
            f"chain.{i}.{name}": value for i, (found, _) in enumerate(adapters) for name, value in found.items()
        }
    return ConditionalExport(entry, {name: value.clone() for name, value in tensors.items()}, frozenset(replaced))


@torch.no_grad()
def fold_task(
    entry: Mapping[str, Any], tensors: Mapping[str, Tensor], *, task_id: int, layer_norm_eps: float
) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Returns what is left of conditioning for one task, and the encoder's tensors with its constants folded in.

    Args:
        entry: From :func:`exported_conditional`.
        tensors: All tensors of the encoder with the tables of all tasks, by names that begin with ``encoder.``.
        task_id: The task.
        layer_norm_eps: Epsilon of the LayerNorms.

    Returns:
        None instead of an entry where the encoder is a plain one then; tables that remain have one row.
    """
    folded = dict(tensors)
    if entry["alignment"]:
        scale_D, shift_D = (folded.pop(f"encoder.alignment.{part}_MD")[task_id] for part in ("scale", "shift"))
        norm = layer_norm_of(
            folded["encoder.embeddings.norm.weight"] * scale_D,
            folded["encoder.embeddings.norm.bias"] * scale_D + shift_D,
            eps=layer_norm_eps,
        )
        folded |= {"encoder.embeddings.norm.weight": norm.weight, "encoder.embeddings.norm.bias": norm.bias}
    for index in entry["layer_norm"]:
        for name in (f"encoder.layers.{index}.{norm}" for norm in _NORMS):
            folded[f"{name}.weight"] = folded.pop(f"{name}.scale_MD")[task_id].clone()
            folded[f"{name}.bias"] = folded.pop(f"{name}.shift_MD")[task_id].clone()
    for name in folded:
        if is_table(name):
            folded[name] = folded[name][task_id : task_id + 1].clone()
    if entry["attention"] is None and not entry["adapters"] and entry["chain"] is None:
        return None, folded
    return {**entry, "alignment": False, "layer_norm": []}, folded


def is_table(name: str) -> bool:
    """Whether a tensor of an export is a table of a conditional module: one row per task."""
    return name.endswith(("scale_MD", "shift_MD", "values_MLs")) and ".gate." not in name


def reasons(entry: Mapping[str, Any] | None) -> list[str]:
    """Why stock classes cannot compute what is left of conditioning for one task; empty: they can."""
    if entry is None:
        return []
    found = []
    if entry["attention"] is not None:
        layers = ", ".join(map(str, entry["attention"]["layers"]))
        found.append(f"conditional attention adds a bias to the scores of layers {layers}: stock attention has none")
    if entry["adapters"]:
        layers = ", ".join(entry["adapters"])
        found.append(f"conditional bottlenecks stand behind layers {layers}: the stock classes have no adapters")
    if entry["chain"] is not None:
        found.append("a chain of adapters over all layers makes the output: the stock classes have no adapters")
    return found


def _norm(name: str, norm: ConditionalLayerNorm, every_M: Conditioning) -> dict[str, Tensor]:
    scale_MD, shift_MD = norm.constants(every_M)
    return {f"{name}.scale_MD": scale_MD, f"{name}.shift_MD": shift_MD}


def _adapter(
    adapter: ConditionalBottleneck | PublishedTopAdapter | PublishedBlock,
    every_M: Conditioning,
    config: ConditionalConfig,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and entry of an adapter: ``[h +] up(act(down(scale h + shift)))``, published ones with a norm."""
    if isinstance(adapter, PublishedTopAdapter):
        found, entry = _adapter(adapter.block, every_M, config)
        return found | _norm("norm", adapter.norm, every_M), entry | {"norm": True}
    gamma_MD, beta_MD = adapter.generated(every_M)
    tables = {"scale_MD": 1 + gamma_MD, "shift_MD": beta_MD}
    if isinstance(adapter, PublishedBlock):
        weights = {"w_down": adapter.down.weight, "b_down": adapter.down.bias,
                   "w_up": adapter.up.weight, "b_up": adapter.up.bias}  # fmt: skip
        activation = None
    else:
        w_down, w_up = adapter.w_down, adapter.w_up
        weights = {"w_down": w_down, "b_down": torch.zeros(len(w_down)), "w_up": w_up, "b_up": torch.zeros(len(w_up))}
        activation = config.bottleneck.activation
    size = len(weights["w_down"])
    return tables | weights, {"size": size, "activation": activation, "norm": False}
