"""Small gates, token contexts and states that the gate tests share.

Two task groups over four tasks and E=6: tasks 0 and 2 may use experts 0..2, tasks 1 and 3 experts 3..5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distmoe.moe.config import GateConfig
from distmoe.moe.gates import Gate, build_gate
from distmoe.moe.routing import TokenContext
from distmoe.tasks import TaskSet, TaskSpec

WIDTH, EXPERTS = 8, 6
KINDS = ("token", "task_embedding", "task_description", "per_task", "task", "sequence", "fixed", "hybrid")
LEARNED = tuple(kind for kind in KINDS if kind != "fixed")
TASK_AWARE = tuple(kind for kind in LEARNED if kind != "token")
TASKS = TaskSet(
    tuple(
        TaskSpec(name=name, kind="classification", metric="accuracy", labels=("no", "yes"), description=text)
        for name, text in (
            ("films", "sentiment of movie reviews"),
            ("entail", "does the premise entail the hypothesis"),
            ("shops", "sentiment of product reviews"),
            ("contradict", None),
        )
    )
)
TWO_TASK_GROUPS = [[True] * 3 + [False] * 3, [False] * 3 + [True] * 3] * 2
ONE_TASK_GROUP = [[True] * EXPERTS] * 4


def make_gate(
    kind: str, *, top_k: int = 2, combine: str = "straight_through", allowed=None, seed: int = 0, **options
) -> Gate:
    gate = build_gate(
        GateConfig(kind=kind, **options),
        hidden_size=WIDTH,
        num_experts=EXPERTS,
        top_k=top_k,
        combine=combine,
        tasks=TASKS,
        allowed=TWO_TASK_GROUPS if allowed is None else allowed,
        routed_index=0,
    )
    gate.reset(seed, "layers.1.gate")
    return gate


def make_context(lengths: list[int], tasks: list[int]) -> TokenContext:
    """Tokens of sequences with these lengths; length 0 is a row without tokens."""
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    return TokenContext(torch.tensor(tasks, dtype=torch.int64)[rows], rows, len(lengths))


def make_tokens(num_tokens: int, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num_tokens, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


MIXED = make_context([3, 0, 4, 2, 5], [0, 0, 1, 2, 3])
NO_TOKENS = make_context([0, 0], [0, 1])
