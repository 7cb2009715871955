"""How a new task finds its route among the experts that exist (task_routing.md section 6).

A gate's rows of the seen tasks are mixed; the weights of the mixture are the policy:

==============  =====================================================================================================
`average`       all tasks of the task group alike: the route on which seen tasks agree most
`nearest`       the row of the task whose description is most like the new one's; no label of a task group is read
`description`   all tasks of the task group, by softmax of the similarity of descriptions: a route from zero examples
`router_only`   a fresh row, to be learned
==============  =====================================================================================================

NOTE: `average` averages routes. Averaging experts themselves would need experts of its own for the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from distmoe.moe.gates.task_description import encode_descriptions
from distmoe.tasks import TaskSet, TaskSpec

Policy = Literal["average", "nearest", "router_only", "description"]
POLICIES: tuple[Policy, ...] = ("average", "nearest", "router_only", "description")

# Cosine similarities of hashed descriptions mostly differ by a few tenths; a tenth then decides by a factor of e.
_TEMPERATURE = 0.1


def similarities(tasks: TaskSet, spec: TaskSpec) -> Tensor:
    """Cosine similarity [M] of each task's description with the new one's; names and labels where there is none."""
    vectors = encode_descriptions(TaskSet((*tasks.specs, spec)))
    return vectors[:-1] @ vectors[-1]


def mixture(policy: Policy, similarity_M: Tensor, *, members: Sequence[int], nearest: int) -> Tensor | None:
    """Weights [M] over the seen tasks, summing to 1; None: a fresh row.

    Args:
        policy: See the module's table.
        similarity_M: From :func:`similarities`.
        members: Seen tasks of the task group that the new task joins.
        nearest: The task that stands for it under `nearest`.
    """
    weights_M = torch.zeros_like(similarity_M)
    chosen = torch.tensor(list(members))
    match policy:
        case "router_only":
            return None
        case "nearest":
            weights_M[nearest] = 1.0
        case "average":
            weights_M[chosen] = 1.0 / len(members)
        case "description":
            weights_M[chosen] = torch.softmax(similarity_M[chosen] / _TEMPERATURE, dim=0)
    return weights_M
