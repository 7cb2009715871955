"""A small model in DeepSpeed on spawned ranks, for the benches that need a whole engine."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distmoe.config import build
from distmoe.data.batch import TaskBatch
from distmoe.engine.config import OptimizerConfig
from distmoe.models.build import build_model
from distmoe.models.config import ModelConfig
from distmoe.models.shape import resolve_shape
from distmoe.parallel import process_groups
from distmoe.parallel.placement import place
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec
from distmoe.training.objective import Objective

TASKS = TaskSet(
    tuple(
        TaskSpec(name=f"task{index}", kind="classification", metric="accuracy", labels=("no", "yes"))
        for index in range(4)
    )
)


@dataclass(frozen=True)
class Size:
    """Model and batch; half of the layers are routed where there are experts."""

    width: int
    layers: int
    experts: int
    vocabulary: int = 8192
    batch: int = 8
    length: int = 32

    def __str__(self) -> str:
        kind = f"{self.experts} experts in every second layer" if self.experts else "dense"
        return f"{self.layers} layers of width {self.width}, {kind}, {self.batch} x {self.length} tokens per rank"


@dataclass
class Arm:
    """An engine with what it trains on."""

    engine: Any
    objective: Objective
    process_groups: process_groups.ProcessGroups
    batch: TaskBatch
    grouping: TaskGrouping

    def step(self) -> None:
        self.engine.backward(self.objective(self.engine(self.batch), self.batch).total)
        self.engine.step(1.0)

    def destroy(self) -> None:
        self.engine.destroy()
        self.process_groups.destroy()


def make_arm(size: Size, zero: dict[str, Any], **deepspeed: Any) -> Arm:
    """Builds on this rank; a collective.

    Args:
        size: Of the model.
        zero: Section ``zero_optimization``.
        deepspeed: Other sections of DeepSpeed's file.
    """
    from distmoe.engine.ds_config import resolve
    from distmoe.engine.initialize import initialize

    ranks, routed = dist.get_world_size(), size.layers // 2 if size.experts else 0
    grouping = TaskGrouping.one_group(len(TASKS), routed)
    placement = place(grouping, [1.0] * len(TASKS), num_ranks=ranks, ep_size=1, mode="colocated")
    groups = process_groups.create(placement)
    moe = {"num_experts": size.experts, "gate": {"kind": "task"}} if size.experts else None
    config = build(
        ModelConfig,
        {
            "hidden_size": size.width, "intermediate_size": 4 * size.width, "num_layers": size.layers,
            "num_heads": max(1, size.width // 32), "moe": moe,
        },
    )  # fmt: skip
    shape = resolve_shape(config, vocab_size=size.vocabulary, pad_token_id=0)
    model = build_model(config, shape=shape, tasks=TASKS, grouping=grouping, hosting=groups.hosting, seed=0)
    optimizer = OptimizerConfig()
    settings = resolve(
        {"zero_optimization": zero} | deepspeed, optimizer=optimizer, micro_batch_size=size.batch,
        accumulation_steps=1, num_ranks=ranks, device_type="cuda" if torch.cuda.is_available() else "cpu",
    )  # fmt: skip
    engine = initialize(
        model, settings=settings, optimizer=optimizer, process_groups=groups, placement=placement if routed else None
    )
    objective = Objective(
        TASKS, grouping, weights=None if config.moe is None else config.moe.losses, world_size=ranks,
        all_reduce=all_reduce, device=engine.device,
    )  # fmt: skip
    engine.train_mode()
    return Arm(engine, objective, groups, _batch(size).to(engine.device), grouping)


def _batch(size: Size) -> TaskBatch:
    """Mixed tasks, no padding; other tokens on each rank."""
    random = torch.Generator().manual_seed(dist.get_rank())
    rows, length = size.batch, size.length
    return TaskBatch(
        input_ids_BS=torch.randint(1, size.vocabulary, (rows, length), generator=random),
        attention_mask_BS=torch.ones(rows, length, dtype=torch.bool),
        token_type_ids_BS=torch.zeros(rows, length, dtype=torch.int64),
        task_ids_B=torch.arange(rows) % len(TASKS),
        labels_B=torch.randint(0, 2, (rows,), generator=random).float(),
        loss_weights_B=torch.full((rows,), 1 / rows),
        example_ids_B=torch.arange(rows),
        example_mask_B=torch.ones(rows, dtype=torch.bool),
        token_index_T=torch.arange(rows * length),
    )


def all_reduce(values: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(values)
    return values


def seconds(function: Callable[[], Any]) -> float:
    """Wall time between two barriers: of the slowest rank, which is what training waits for."""
    dist.barrier()
    began = time.perf_counter()
    function()
    dist.barrier()
    return time.perf_counter() - began


def on_ranks(function: Callable[..., Any], ranks: int, *args: Any, prepare: Callable[[], Any] | None = None) -> Any:
    """Calls ``function(*args)`` on spawned ranks inside DeepSpeed's world and returns what rank 0 returned.

    ``prepare`` runs before DeepSpeed takes hold of torch's collectives; what it returns becomes the first argument.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        mp.spawn(_rank, (ranks, port, str(answer), function, args, prepare), nprocs=ranks)
        return pickle.loads(answer.read_bytes())


def _rank(
    rank: int,
    ranks: int,
    port: int,
    answer: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    prepare: Callable[[], Any] | None,
) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    first = () if prepare is None else (prepare(),)
    from distmoe.engine.distributed import init_distributed, shut_down

    init_distributed()
    value = function(*first, *args)
    if rank == 0:
        Path(answer).write_bytes(pickle.dumps(value))
    shut_down()
