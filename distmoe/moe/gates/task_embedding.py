"""Gate `task_embedding`: each token chooses by its own state and a learned vector of its task."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from distmoe.moe.gates.base import Gate
from distmoe.moe.gates.declared import router_dtype
from distmoe.moe.gates.joint_router import JointRouter
from distmoe.moe.gates.setting import GateSetting
from distmoe.moe.gates.task_vectors import TaskVectors
from distmoe.moe.routing import TokenContext


class TaskEmbeddingGate(Gate):
    """``z = R([h ; tau_t])`` with a learned tau (after M3ViT's task-conditioned router).

    Args:
        setting: What does not depend on the kind of gate.
        router: ``mlp``, or ``linear``, which is no more than a bias per task.
        vector_size: Width of tau.
        hidden_size: Hidden width of the task MLP and of the MLP router.
        features_MV: Frozen features of the tasks; None for one-hot tasks.
    """

    def __init__(
        self,
        setting: GateSetting,
        *,
        router: Literal["mlp", "linear"],
        vector_size: int,
        hidden_size: int,
        features_MV: Tensor | None = None,
    ) -> None:
        super().__init__(setting)
        self.task_vectors = TaskVectors(
            num_tasks=self.num_tasks, hidden_size=hidden_size, vector_size=vector_size, features_MV=features_MV
        )
        self.router = JointRouter(
            kind=router,
            hidden_size=self.hidden_size,
            vector_size=vector_size,
            router_size=hidden_size,
            num_experts=self.num_experts,
            router_std=setting.router_std,
        )

    def logits(self, x_TD: Tensor, context: TokenContext) -> Tensor:
        return self.router(x_TD, self.task_vectors(router_dtype(x_TD)), context.task_ids_T)
