"""How many parameters conditioning adds and freezing leaves out, counted from modules.

Modules on torch's meta device do as well as real ones; see :mod:`distmoe.nn.conditional.published_models`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from distmoe.nn.conditional.alignment import ConditionalAlignment
from distmoe.nn.conditional.attention import ConditionalAttentionBias
from distmoe.nn.conditional.bottleneck import ConditionalBottleneck
from distmoe.nn.conditional.layer_norm import ConditionalLayerNorm
from distmoe.nn.conditional.module import conditional_parameters
from distmoe.nn.conditional.published import PublishedBlock, PublishedTopAdapter
from distmoe.nn.conditional.task_embedding import TaskConditioner


@dataclass(frozen=True, kw_only=True)
class ParameterShares:
    """The three ratios that a claim about trained parameters needs; they are easily taken for each other.

    Attributes:
        backbone: Parameters of the unconditioned model.
        added: Parameters on top of it: conditional modules, and heads if the caller counts them.
        frozen_backbone: Frozen ones of the backbone.
        frozen_added: Frozen ones of the additions; 0 unless ``model.freeze`` is ``body``.
    """

    backbone: int
    added: int
    frozen_backbone: int
    frozen_added: int

    @property
    def total(self) -> int:
        return self.backbone + self.added

    @property
    def frozen(self) -> int:
        return self.frozen_backbone + self.frozen_added

    @property
    def frozen_of_total(self) -> float:
        return self.frozen / self.total

    @property
    def frozen_of_backbone(self) -> float:
        """How much of the pre-trained model is fixed; the paper's "half" is this one."""
        return self.frozen_backbone / self.backbone

    @property
    def trainable_to_backbone(self) -> float:
        """What is trained, additions included, against training the plain model; divide by tasks for "per task"."""
        return (self.total - self.frozen) / self.backbone


def parameter_shares(model: nn.Module, *, heads: Collection[str] = ()) -> ParameterShares:
    """Counts a model by what is added and by ``requires_grad``.

    Args:
        model: Any model with or without conditional modules.
        heads: Names of parameters that count as added besides the conditional ones.
    """
    added = conditional_parameters(model).keys() | set(heads)
    sums: Counter[tuple[bool, bool]] = Counter()
    for name, parameter in model.named_parameters():
        sums[name in added, not parameter.requires_grad] += parameter.numel()
    return ParameterShares(
        backbone=sums[False, True] + sums[False, False],
        added=sums[True, True] + sums[True, False],
        frozen_backbone=sums[False, True],
        frozen_added=sums[True, True],
    )


def count_added(model: nn.Module) -> dict[str, int]:
    """Returns the parameters that conditioning added to a model, by part; heads are not among them."""
    counts: Counter[str] = Counter()
    for module in model.modules():
        match module:
            case TaskConditioner():
                counts["task_table"] += 0 if module.z_Tk is None else module.z_Tk.numel()
                counts["projection"] += _size(module.projection)
            case ConditionalAlignment():
                counts["alignment"] += _size(module)
            case ConditionalAttentionBias():
                counts["attention_generators"] += _size(module.generator)
                counts["attention_blocks"] += module.blocks_Ls.numel()
            case ConditionalLayerNorm():
                counts["layer_norm"] += _size(module.generator)
            case ConditionalBottleneck() | PublishedBlock():
                counts["bottleneck"] += _size(module)
            case PublishedTopAdapter():
                counts["bottleneck_norm"] += module.norm.weight.numel() + module.norm.bias.numel()
    return dict(counts)


def _size(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())
