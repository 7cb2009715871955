"""The fixed routes of task-level gates: what an export of one task's network needs.

Shape letters: M tasks, K experts per token, D model width.
"""

from __future__ import annotations

import torch

from distmoe.errors import ConfigError
from distmoe.moe.gates.base import Gate
from distmoe.moe.routing import Routing, TokenContext


@torch.no_grad()
def routes_by_task(gate: Gate) -> Routing:
    """Routes one token of each task without noise; row t of every tensor belongs to task t.

    Raises:
        ConfigError: If routes of the gate depend on the tokens.
    """
    if gate.granularity != "task":
        raise ConfigError(
            "routes of this gate depend on the tokens, so no task has a fixed set of experts",
            got=type(gate).__name__,
            expected="a model with gate task or fixed",
            remedy="export the whole model, or train with model.moe.gate.kind=task",
        )
    device = gate.allowed_ME.device
    tasks_M = torch.arange(gate.num_tasks, device=device)
    was_training = gate.training
    gate.eval()
    try:
        return gate(torch.zeros(gate.num_tasks, gate.hidden_size, device=device),
                    TokenContext(tasks_M, tasks_M, gate.num_tasks))  # fmt: skip
    finally:
        gate.train(was_training)
