"""A small run with two task groups, and a cluster of made-up numbers that are easy to calculate with."""

from __future__ import annotations

from distmoe.forecast.hardware import Accelerator, Cluster
from distmoe.forecast.workload import Workload, make_workload
from distmoe.recipes.loader import resolve
from distmoe.training.config import RunConfig
from distmoe.training.run_data import open_sources

TINY = (
    "model.hidden_size=32", "model.num_layers=2", "model.num_heads=2", "model.intermediate_size=64",
    "model.moe.num_experts=8", "model.moe.layers=all", "model.moe.top_k=1", "model.dropout=0",
    "model.attention_dropout=0", "tasks.suite.num_task_groups=2", "tasks.suite.tasks_per_group=2",
    "tasks.suite.train_examples=64", "tasks.suite.low_resource_examples=32", "tasks.suite.eval_examples=32",
    "data.batch_size=32", "data.max_length=16",
)  # fmt: skip

# The same model as a decoder of four text-to-text tasks.
DECODER = (
    "model.family=decoder",
    "tasks.source=text_suite", "tasks.text_suite.kind=generation", "tasks.text_suite.train_examples=8",
    "tasks.text_suite.eval_examples=4", "model.max_positions=64", "run.max_new_tokens=32",
    "structure.grouping=per_task",
)  # fmt: skip


def config(*more: str) -> RunConfig:
    return resolve("demo", [*TINY, *more])


# Pools of 2 and 6 experts: task groups of one task and of three.
UNEVEN = (
    "structure.grouping=[[planted0_a],[planted0_low,planted1_a,planted1_low]]", "model.moe.experts_per_task=2",
)  # fmt: skip


def workload(*more: str) -> Workload:
    """Two task groups of two tasks, equal weights, two routed layers, 8 experts of D 32 and F 64."""
    run = config(*more)
    return make_workload(run, open_sources(run))


def cluster(nodes: int, per_node: int) -> Cluster:
    device = Accelerator(
        name="paper", memory=2**34, low_flops=1e12, fp32_flops=1e12, hbm=1e10, inside=1e9, between=1e8, source="made up"
    )
    return Cluster(nodes, per_node, device)
