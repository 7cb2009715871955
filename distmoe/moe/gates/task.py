"""Gate `task`: one learned row of logits per task."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from distmoe.moe.gates.base import Gate, Granularity, take_rows
from distmoe.moe.gates.declared import router_dtype
from distmoe.moe.gates.setting import GateSetting, Noise
from distmoe.moe.routing import TokenContext


class TaskGate(Gate):
    """``z = B_t`` with B [tasks, E] per layer (Task-MoE, arXiv 2110.03742).

    All tokens of a task go to the same experts: one task's network can be cut out exactly, and nothing is dropped.
    """

    granularity: ClassVar[Granularity] = "task"
    noises: ClassVar[tuple[Noise, ...]] = ("none", "normal")

    def __init__(self, setting: GateSetting) -> None:
        super().__init__(setting)
        self.logits_ME = self.declare(
            "logits_ME", self.num_tasks, self.num_experts, std=setting.router_std, per_task=True
        )

    def logits(self, x_TD: Tensor, context: TokenContext) -> Tensor:
        return take_rows(self.logits_ME.to(router_dtype(x_TD)), context.task_ids_T)
