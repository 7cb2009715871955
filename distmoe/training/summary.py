"""What a run is made of: ``summary.json`` for the report, and a few lines for the person who starts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from distmoe.checkpoint.shares import shares_text
from distmoe.engine.ds_config import DeepSpeedSettings
from distmoe.models.routed_layer import RoutedLayer
from distmoe.moe.layer import RoutedFeedForward
from distmoe.nn.conditional.counts import ParameterShares
from distmoe.parallel.placement import Placement
from distmoe.tasks import TaskGrouping, TaskSet
from distmoe.training.config import RunConfig
from distmoe.training.grouping import tree_lines


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters.

    Attributes:
        total: Of the whole model, every expert once.
        active: That one token meets: shared parameters, gates, heads and ``top_k`` experts per routed layer.
        per_rank: On this rank, before ZeRO shards anything.
    """

    total: int
    active: int
    per_rank: int


@dataclass(frozen=True)
class TaskSize:
    """Examples of a task.

    Attributes:
        train: Training examples that are used; likewise the next two.
        validation: 0 without such a split.
        test: 0 without such a split.
        truncated: Examples cut to ``data.max_length``, over all splits.
        left_out: Training examples beyond ``data.max_train_examples``.
    """

    train: int
    validation: int
    test: int
    truncated: int
    left_out: int = 0


def count_parameters(model: nn.Module, *, pool_sizes: Sequence[Sequence[int]], top_k: int) -> ParameterCount:
    """Counts before the engine shards the model. ``pool_sizes``: experts of each task group, per routed layer."""
    per_rank = sum(parameter.numel() for parameter in model.parameters())
    total = active = per_rank
    routed = [module for module in model.modules() if isinstance(module, (RoutedFeedForward, RoutedLayer))]
    for module, sizes in zip(routed, pool_sizes, strict=True):
        if isinstance(module, RoutedLayer):
            local = sum(parameter.numel() for parameter in module.parameters())
            per_expert = local // len(module.variants)
        else:
            local = sum(parameter.numel() for parameter in module.pools.parameters())
            pool: Any = next(iter(module.pools.values()))
            per_expert = sum(parameter[0].numel() for parameter in pool.parameters())
        total += sum(sizes) * per_expert - local
        active += top_k * per_expert - local
    return ParameterCount(total, active, per_rank)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that is known when training begins."""

    tasks: TaskSet
    sizes: Sequence[TaskSize]
    weights: Sequence[float]
    routed_layers: Sequence[int]
    grouping: TaskGrouping
    placement: Placement
    parameters: ParameterCount
    settings: DeepSpeedSettings
    pool_sizes: Sequence[Sequence[int]] = ()
    shares: ParameterShares | None = None
    tensor: int = 1  # tensor ranks of each of the placement's ranks
    cut_under_shift: Mapping[str, int] = field(default_factory=dict)  # texts of each split under shift that were cut

    def to_json(self) -> dict[str, Any]:
        """The plain values of ``summary.json``."""
        return {
            "tasks": [
                {"name": spec.name, "kind": spec.kind, "metric": spec.metric, "family": spec.family, "weight": weight}
                | asdict(size)
                for spec, size, weight in zip(self.tasks, self.sizes, self.weights, strict=True)
            ],
            "routed_layers": list(self.routed_layers),
            "grouping": self.grouping.to_json(),
            "pool_sizes": [list(sizes) for sizes in self.pool_sizes],
            "placement": {
                "mode": self.placement.mode,
                "ep_size": self.placement.ep_size,
                "host_classes": [asdict(host) for host in self.placement.host_classes],
            },
            "num_ranks": self.placement.num_ranks * self.tensor,
            "tensor": self.tensor,
            "cut_under_shift": dict(self.cut_under_shift),
            "parameters": asdict(self.parameters),
            "shares": None if self.shares is None else asdict(self.shares),
            "zero_stage": self.settings.stage,
            "precision": self.settings.precision,
        }

    def lines(self, config: RunConfig, *, device: str) -> list[str]:
        """The start-up summary, one string per line."""
        return [*self._task_lines(config), *self._model_lines(config), *self._parallel_lines(config, device)]

    def _task_lines(self, config: RunConfig) -> list[str]:
        width = max(len(name) for name in self.tasks.names)
        rows = [f"{'task':{width}}  {'metric':9}  {'train':>8}  {'valid':>7}  {'test':>7}  {'cut':>6}  share"]
        for spec, size, weight in zip(self.tasks, self.sizes, self.weights, strict=True):
            rows.append(
                f"{spec.name:{width}}  {spec.metric:9}  {size.train:>8,}  {size.validation:>7,}  {size.test:>7,}  "
                f"{size.truncated:>6,}  {100 * weight:4.1f} %"
            )
        truncated = sum(size.truncated for size in self.sizes)
        if truncated:
            rows.append(
                f"{truncated:,} examples were longer than data.max_length={config.data.max_length} and were cut"
            )
        if self.cut_under_shift:
            shown = ", ".join(f"{split} {cut:,}" for split, cut in self.cut_under_shift.items())
            rows.append(f"scored under shift at the end, with texts that were cut: {shown}")
        left_out = sum(size.left_out for size in self.sizes)
        if left_out:
            limit = config.data.max_train_examples
            rows.append(f"{left_out:,} training examples beyond data.max_train_examples={limit} were left out")
        return rows

    def _model_lines(self, config: RunConfig) -> list[str]:
        moe, count = config.model.moe, self.parameters
        kind = "dense" if moe is None else f"gate {moe.gate.kind}, {moe.experts_text}, top {moe.top_k}"
        if moe is not None and moe.unit == "block":
            kind = moe.experts_text
        head = (
            f"model: {kind}; parameters: {count.total:,} total, {count.active:,} active per token, "
            f"{count.per_rank:,} on rank 0"
        )
        rows = [head]
        if self.shares is not None and (self.shares.frozen or config.model.conditional is not None):
            rows.append(f"  {shares_text(self.shares)}")
        return [*rows, *(f"  {line}" for line in tree_lines(self.grouping, self.tasks, self.routed_layers))]

    def _parallel_lines(self, config: RunConfig, device: str) -> list[str]:
        placement, settings = self.placement, self.settings
        ranks = "ranks" if self.tensor == 1 else "data ranks"
        rows = [
            f"placement: {placement.mode}, {placement.num_ranks} {ranks} "
            f"in {placement.num_blocks} blocks of {placement.ep_size}"
        ]
        if len(placement.host_classes) > 1:
            rows += [
                f"  {ranks} {_ranks(host.ranks)}: {', '.join(self.tasks[task].name for task in host.tasks)}"
                for host in placement.host_classes
            ]
        if self.tensor > 1:
            rows.append(
                f"tensor parallelism: {self.tensor} neighbouring ranks share the dense matrices of each data rank, "
                f"{placement.num_ranks * self.tensor} ranks in all; experts are whole on each"
            )
            if config.parallel.sequence:
                rows.append("sequence parallelism: tensor ranks share the positions between the cut matrices")
        rows.append(
            f"DeepSpeed: {settings.source}, ZeRO-{settings.stage}, {settings.precision}, "
            f"{settings.accumulation_steps} micro-batches per step, {device}"
        )
        if settings.rounds_sums:
            rows.append(
                f"warning: {settings.accumulation_steps} micro-batches are added up in bf16, which loses small "
                "gradients: leave data.micro_batch_size out for one per step"
            )
        return [*rows, f"{config.schedule.num_steps:,} steps of {config.data.batch_size} examples"]


def _ranks(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
