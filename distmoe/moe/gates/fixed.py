"""Gate `fixed`: a table says which experts a task uses; nothing is learned.

Shape letters: T tokens, E experts, M tasks, K experts per token.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from distmoe.errors import ConfigError
from distmoe.moe.gates.base import Gate, Granularity, take_rows
from distmoe.moe.gates.declared import router_dtype
from distmoe.moe.gates.setting import GateSetting, Noise
from distmoe.moe.routing import TokenContext
from distmoe.seed import generator
from distmoe.tasks import TaskSet

Table = Literal["random"] | dict[str, list[int]] | None


class FixedGate(Gate):
    """Probability 1/k on each expert of the task's row, 0 elsewhere.

    The mandatory control of every learned task gate: in the pilot a random table was as robust as a learned one.
    It has no parameters.

    Args:
        setting: What does not depend on the kind of gate.
        table: Task name -> ``top_k`` experts, as indices inside the task's group; ``random`` for a table drawn by
            :meth:`reset` from a stream per task; None to deal the experts of each task group to its tasks in turn.
        tasks: The run's tasks.

    Raises:
        ConfigError: If the table does not fit the tasks or the experts, or if noise is asked for.
    """

    granularity: ClassVar[Granularity] = "task"
    noises: ClassVar[tuple[Noise, ...]] = ("none",)

    def __init__(self, setting: GateSetting, *, table: Table, tasks: TaskSet) -> None:
        super().__init__(setting)
        self._random = table == "random"
        self._setting = setting
        self._task_names = tasks.names
        rows = _named_rows(setting, table, tasks) if isinstance(table, dict) else _dealt_rows(setting)
        self.table_MK: Tensor
        self.register_buffer("table_MK", torch.tensor(rows, dtype=torch.int64))

    @torch.no_grad()
    def reset(self, seed: int, name: str) -> None:
        if self._random:
            rows = _random_rows(self._setting, self._task_names, seed, name)
            self.table_MK.copy_(torch.tensor(rows, dtype=torch.int64))

    def logits(self, x_TD: Tensor, context: TokenContext) -> Tensor:
        empty_ME = torch.full(
            (self.num_tasks, self.num_experts), -torch.inf, dtype=router_dtype(x_TD), device=x_TD.device
        )
        return take_rows(empty_ME.scatter(1, self.table_MK, 0.0), context.task_ids_T)


def _dealt_rows(setting: GateSetting) -> list[list[int]]:
    """Round robin: the j-th task of a task group takes the group's experts j*k, j*k+1, ... (modulo their number)."""
    dealt: dict[tuple[int, ...], int] = {}
    rows = []
    for task in range(setting.num_tasks):
        choices = setting.choices(task)
        first = dealt.get(choices, 0)
        rows.append([choices[(first + offset) % len(choices)] for offset in range(setting.top_k)])
        dealt[choices] = first + setting.top_k
    return rows


def _random_rows(setting: GateSetting, task_names: tuple[str, ...], seed: int, name: str) -> list[list[int]]:
    """``top_k`` different experts per task, from a stream of its own: adding a task moves no other."""
    rows = []
    for task, task_name in enumerate(task_names):
        choices = setting.choices(task)
        order = torch.randperm(len(choices), generator=generator(seed, "init", f"{name}.table_MK", task_name))
        rows.append([choices[index] for index in order[: setting.top_k].tolist()])
    return rows


def _named_rows(setting: GateSetting, table: dict[str, list[int]], tasks: TaskSet) -> list[list[int]]:
    """The user's table, in global expert ids."""
    where = f"routed layer {setting.routed_index}: the table of gate fixed"
    if set(table) != set(tasks.names):
        raise ConfigError(
            f"{where} names other tasks than the run",
            got=f"missing {sorted(set(tasks.names) - set(table))}, unknown {sorted(set(table) - set(tasks.names))}",
            expected=f"one row for each of {list(tasks.names)}",
            remedy="correct model.moe.gate.table",
        )
    rows = []
    for task, name in enumerate(tasks.names):
        row, choices = table[name], setting.choices(task)
        if (
            len(row) != setting.top_k
            or len(set(row)) != len(row)
            or not all(0 <= index < len(choices) for index in row)
        ):
            raise ConfigError(
                f"{where} has a wrong row for task {name!r}",
                got=row,
                expected=f"{setting.top_k} (top_k) different numbers in 0..{len(choices) - 1}, the group's experts",
                remedy="correct model.moe.gate.table, or change model.moe.top_k",
            )
        rows.append([choices[index] for index in row])
    return rows
