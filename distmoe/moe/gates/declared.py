"""Parameters that carry their own initialisation, drawn from streams named after them.

A module that declares its tensors needs no ``reset`` of its own::

    self.weight_ED = self.declare("weight_ED", num_experts, hidden_size, std=0.02)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from distmoe.nn.init import init_normal_


class DeclaredModule(nn.Module):
    """A module whose parameters are declared with their initial distribution."""

    def __init__(self) -> None:
        super().__init__()
        self._initial: dict[str, tuple[float, float]] = {}
        self._per_task: list[str] = []

    def declare(
        self, name: str, *shape: int, std: float = 0.0, mean: float = 0.0, per_task: bool = False
    ) -> nn.Parameter:
        """Registers a parameter that :meth:`reset` fills with ``mean + N(0, std^2)``.

        It holds ``mean`` until then, so that a forgotten reset is a visible tie and never left-over memory.
        ``per_task``: every task has a row or column of its own, from which no other task's route is computed.
        """
        parameter = nn.Parameter(torch.full(shape, mean))
        self.register_parameter(name, parameter)
        self._initial[name] = (mean, std)
        if per_task:
            self._per_task.append(name)
        return parameter

    def task_parameters(self) -> Iterator[nn.Parameter]:
        """Those declared ``per_task``, of children too: all that can move without moving another task's route."""
        yield from (self.get_parameter(name) for name in self._per_task)
        for child in self.children():
            if isinstance(child, DeclaredModule):
                yield from child.task_parameters()

    @torch.no_grad()
    def reset(self, seed: int, name: str) -> None:
        """Initialises all tensors from named streams: values depend on the seed and the names only, never on ranks.

        Args:
            seed: Seed of the run.
            name: Full dotted name of this module in the model.
        """
        for own, (mean, std) in self._initial.items():
            parameter = self.get_parameter(own)
            if std > 0:
                init_normal_(parameter, seed=seed, name=f"{name}.{own}", std=std)
                parameter.add_(mean)
            else:
                parameter.fill_(mean)
        for child_name, child in self.named_children():
            if isinstance(child, DeclaredModule):
                child.reset(seed, f"{name}.{child_name}")


def router_dtype(x: Tensor) -> torch.dtype:
    """float32 for every training precision; float64 stays float64, so that formulas can be tested to 1e-12."""
    return torch.promote_types(x.dtype, torch.float32)
