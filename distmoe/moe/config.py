"""Configuration of task-routed mixture-of-experts layers (arXiv 2204.07689; the options are distmoe's)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distmoe.config import Section
from distmoe.tasks.grouping import Partition

GateName = Literal["token", "task_embedding", "task_description", "per_task", "task", "sequence", "fixed", "hybrid"]
TASK_LEVEL_GATES: tuple[str, ...] = ("task", "fixed")


class GateConfig(Section):
    kind: GateName = Field(
        "task",
        description="Which gate chooses the experts; `task` is the only learned gate that beat dense in the pilot.",
    )
    router: Literal["mlp", "linear"] = Field(
        "mlp", description="Router of task_embedding and task_description: linear is only a per-task bias."
    )
    embedding_size: int = Field(64, gt=0, description="Width of the task embedding.")
    hidden_size: int = Field(64, gt=0, description="Hidden width of MLP routers.")
    init: Literal["normal", "zeros"] = Field("normal", description="Router initialisation: N(0, init_std^2), or zeros.")
    init_std: float = Field(0.02, ge=0, description="Standard deviation of the router initialisation.")
    noise: Literal["none", "normal", "multiplicative"] = Field(
        "none", description="Router noise while training: N(0, 1/E^2) on logits, or U(1-eps, 1+eps) on inputs."
    )
    noise_eps: float = Field(0.01, gt=0, description="eps of multiplicative noise.")
    detach_input: bool = Field(
        False,
        description="The states that the router reads get no gradient from it: neither routing nor its auxiliary "
        "losses train what lies below, for example generators of conditional modules.",
    )
    table: Literal["random"] | dict[str, list[int]] | None = Field(
        None,
        description="Only gate fixed: task name -> experts (indices inside the task's group), or a seeded random "
        "table.",
    )


class AuxiliaryLossConfig(Section):
    balance: float = Field(
        0.0, ge=0, description="Weight of the load-balancing loss; 0.01 is usual for token, task_embedding, per_task."
    )
    z: float = Field(0.0, ge=0, description="Weight of mean(logsumexp(logits)^2); 1e-3 or 1e-4.")
    importance: float = Field(0.0, ge=0, description="Weight of CV^2(importance) + CV^2(load); 0.01 or 0.1.")
    mutual_information: float = Field(
        0.0, ge=0, description="Weight of -I(task; expert); 0.005. No barrier to collapse: pair with balance."
    )


class MoEConfig(Section):
    layers: Literal["odd", "even", "all"] | list[int] = Field("odd", description="Routed layers (0-based).")
    unit: Literal["ffn", "block"] = Field(
        "ffn",
        description="What a routed layer has once per expert: its feed-forward part; or, with block, the whole layer "
        "once per task group (attention, feed-forward part, norms), chosen by the task alone. block wants "
        "experts_per_task_group=1 and reads no other key below.",
    )
    num_experts: int = Field(
        8, gt=0, description="Experts per routed layer, over all its task groups; a multiple of their number."
    )
    experts_per_task_group: int | None = Field(
        None,
        gt=0,
        description="Experts of each task group, however many there are; null: num_experts / task groups. Where it is "
        "set, num_experts is not read.",
    )
    experts_per_task: int | None = Field(
        None,
        gt=0,
        description="Experts of each task group for every task in it, in place of experts_per_task_group. With "
        "structure.learn, joined task groups then pool their experts instead of merging them.",
    )
    largest_pool: int | None = Field(
        None,
        gt=0,
        description="Only experts_per_task: most experts of a task group. With structure.learn, the most similar "
        "experts of a pool that would be larger are merged.",
    )
    top_k: int = Field(
        1, gt=0, description="Experts per token. Above 1, expert_size defaults to dense/k so that compute stays dense."
    )
    expert_size: int | None = Field(
        None, gt=0, description="Feed-forward width of one expert; null: dense width / top_k."
    )
    gate: GateConfig = Field(default_factory=GateConfig)
    combine: Literal["raw", "renorm", "straight_through"] = Field(
        "straight_through", description="Combine weights: p, p/sum(p), or 1/k + p - stop_gradient(p)."
    )
    shared_expert: bool = Field(
        False,
        description="Adds a dense feed-forward part that every token passes; it starts as zero output when upcycled.",
    )
    capacity_factor: float | None = Field(
        None,
        gt=0,
        description="null: dropless. Otherwise rows per expert <= max(round(cf * tokens * k / experts), 4); refused "
        "with task-level gates.",
    )
    upcycle_noise: float = Field(
        0.01, ge=0, description="Relative noise on each expert's copy of the dense weights; 0 keeps all copies equal."
    )
    losses: AuxiliaryLossConfig = Field(default_factory=AuxiliaryLossConfig)
    deduplicate: bool = Field(
        False, description="Send a token once per destination rank instead of once per expert (pays when top_k > 1)."
    )
    kernel: Literal["auto", "grouped_mm", "loop"] = Field(
        "auto", description="Expert matmul: one grouped matmul, or a loop (faster for few large experts)."
    )

    @property
    def experts_text(self) -> str:
        """How many experts, in words."""
        if self.unit == "block":
            return "a whole layer per task group"
        if self.experts_per_task is not None:
            most = "" if self.largest_pool is None else f", at most {self.largest_pool} per task group"
            return f"{self.experts_per_task} experts per task{most}"
        if self.experts_per_task_group is not None:
            return f"{self.experts_per_task_group} experts per task group"
        return f"{self.num_experts} experts"

    @property
    def counting_keys(self) -> str:
        """The keys that say how many experts a task group has; the others are not read."""
        if self.experts_per_task is not None:
            limit = "" if self.largest_pool is None else " and model.moe.largest_pool"
            return f"model.moe.experts_per_task{limit}"
        return "model.moe." + ("num_experts" if self.experts_per_task_group is None else "experts_per_task_group")

    def pool_sizes(self, partition: Partition) -> tuple[int, ...]:
        """Experts of each task group of a routed layer: a function of the grouping, so that no one must remember it.

        With ``num_experts`` the equal share, rounded down; what does not divide is refused where models are built.
        """
        if self.experts_per_task is not None:
            most = self.largest_pool or self.experts_per_task * sum(map(len, partition))
            return tuple(min(self.experts_per_task * len(task_group), most) for task_group in partition)
        share = self.experts_per_task_group or self.num_experts // len(partition)
        return (share,) * len(partition)
