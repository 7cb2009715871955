"""What every gate of a routed layer must know, whatever its formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distmoe.errors import ConfigError

Combine = Literal["raw", "renorm", "straight_through"]
Noise = Literal["none", "normal", "multiplicative"]


@dataclass(frozen=True, kw_only=True)
class GateSetting:
    """The part of a gate that does not depend on its kind.

    Args:
        routed_index: Which routed layer, counted from 0; only error messages need it.
        hidden_size: Width D of the token states.
        top_k: Experts per token, K.
        combine: How probabilities become weights, see :func:`distmoe.moe.gates.combine.combine_weights`.
        allowed: Per task, per expert of the layer: whether tokens of the task may go there. Shape [tasks, E].
        noise: Noise while training, see :class:`distmoe.moe.gates.base.Gate`.
        noise_eps: Half-width of multiplicative noise.
        router_std: Standard deviation of the tensors that make the logits; 0 makes the first routing a tie.
        detach_input: Whether token states get no gradient through the router.

    Raises:
        ConfigError: If a task may choose among fewer than ``top_k`` experts.
    """

    routed_index: int
    hidden_size: int
    top_k: int
    combine: Combine
    allowed: tuple[tuple[bool, ...], ...]
    noise: Noise = "none"
    noise_eps: float = 0.01
    router_std: float = 0.02
    detach_input: bool = False

    def __post_init__(self) -> None:
        assert all(len(row) == self.num_experts for row in self.allowed), "allowed must be [tasks, E]"
        for task in range(self.num_tasks):
            choice = len(self.choices(task))
            if self.top_k > choice:
                raise ConfigError(
                    f"routed layer {self.routed_index}: top_k is larger than the number of experts that task {task}"
                    " may choose from",
                    got=f"top_k {self.top_k} with {choice} experts in the task's group",
                    expected=f"top_k <= {choice}",
                    remedy="lower model.moe.top_k, raise model.moe.num_experts, or use fewer task groups at this layer",
                )

    @property
    def num_tasks(self) -> int:
        return len(self.allowed)

    @property
    def num_experts(self) -> int:
        return len(self.allowed[0])

    @property
    def all_allowed(self) -> bool:
        """Whether the layer has a single task group, so that nothing must be masked."""
        return all(all(row) for row in self.allowed)

    def choices(self, task: int) -> tuple[int, ...]:
        """Experts of the task's own group, ascending."""
        return tuple(expert for expert, allowed in enumerate(self.allowed[task]) if allowed)
