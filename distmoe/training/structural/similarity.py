"""How alike the members of a frontier are: their features of the whole probe set, then unbiased CKA.

Only ranks that host a task group can run it. Its hosts share the probe's batches; a sum over all ranks of tensors that
are zero elsewhere brings the features together. Zeros add exactly, so every rank holds the same bits; and as the
batches do not depend on the ranks, so does one process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from distmoe.models.comparison import Comparison, compared_features
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.parallel.placement import Placement
from distmoe.structure.frontier import Frontier
from distmoe.structure.hosting import Hosting
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskGrouping
from distmoe.training.agreement import is_distributed
from distmoe.training.structural.probe import ProbeSet


@torch.no_grad()
def compare(
    model: MultiTaskEncoder,
    frontier: Frontier,
    *,
    grouping: TaskGrouping,
    model_layer: int,
    probe: ProbeSet,
    placement: Placement,
    rank: int,
    device: torch.device,
) -> Similarity:
    """Similarities of the frontier's members. Collective; the model must be in evaluation mode.

    Args:
        model: This rank's.
        frontier: What to compare.
        grouping: In force.
        model_layer: The frontier's layer in the model.
        probe: Sequences.
        placement: Of the grouping.
        rank: This rank.
        device: Of the model.
    """
    hosting = Hosting.of(frontier, grouping, placement)
    own = hosting.members_of(rank)
    # What a rank hosts at a layer, all ranks of its span host.
    hosts = hosting.hosts[own[0]] if own else ()
    width = model.shape.hidden_size
    features_GND = torch.zeros(len(frontier.members), len(probe), width, dtype=torch.float64, device=device)
    tasks = tuple(frontier.members[place][0] for place in own)
    for first in range(0, probe.num_batches, len(hosts)) if own else ():
        # All hosts run every round, also without a batch: they may be one block and exchange tokens.
        index = first + hosts.index(rank)
        batch = probe.batch(index) if index < probe.num_batches else probe.no_rows(tasks[0])
        found_GBD = compared_features(model.encoder, Comparison(batch.to(device), model_layer, tasks))
        if index < probe.num_batches:
            features_GND[list(own), probe.rows_of(index)] = found_GBD.double()
    return Similarity.from_features(_sum_over_ranks(features_GND))


def _sum_over_ranks(values: Tensor) -> Tensor:
    if is_distributed():
        dist.all_reduce(values)
    return values
