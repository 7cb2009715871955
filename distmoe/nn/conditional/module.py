"""The mark of everything that conditioning adds to a model, and what follows from it.

Freezing, decay and counting ask whether a parameter is an addition. They ask the module, never a name: the published
code froze its attention generators at random values because their names matched no exemption.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn


class ConditionalModule(nn.Module):
    """Base of modules whose parameters do not belong to the backbone.

    A :class:`~distmoe.nn.conditional.layer_norm.ConditionalLayerNorm` is not one: its weight and bias are the
    backbone's, and only its generator is an addition.
    """

    # Own parameters that weight decay applies to. Generators, tables, embeddings and attention blocks have none:
    # they are scales, shifts and biases.
    decayed: ClassVar[frozenset[str]] = frozenset()

    def reset(self, seed: int, name: str, std: float) -> None:
        """Fresh values from the streams of their names, for own parameters and those of plain children.

        Conditional children are reset by themselves: call :func:`reset_conditional` on the model.

        Args:
            seed: Seed of the run.
            name: Full dotted name of this module.
            std: Standard deviation of the model's fresh weights.
        """


def reset_conditional(root: nn.Module, seed: int, name: str, std: float) -> None:
    """Resets every conditional module at or below ``root``, whose full dotted name is ``name``."""
    for path, module in root.named_modules(prefix=name):
        if isinstance(module, ConditionalModule):
            module.reset(seed, path, std)


def conditional_parameters(model: nn.Module) -> dict[str, bool]:
    """Returns whether weight decay applies to it, per parameter that conditioning added, in the model's order."""
    decay: dict[str, bool] = {}
    for path, module in model.named_modules():
        if isinstance(module, ConditionalModule):
            prefix = f"{path}." if path else ""
            for name, _ in module.named_parameters():
                # Parents come before children, so that a conditional child decides for its own.
                decay[prefix + name] = name in module.decayed
    return {name: decay[name] for name, _ in model.named_parameters() if name in decay}
