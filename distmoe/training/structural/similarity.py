"""How alike the members of a frontier are, on the whole probe set.

Only ranks that host a task can run it. Its hosts share the probe's batches; a sum over all ranks of tensors that are
zero elsewhere brings the features together. Zeros add exactly, so every rank holds the same bits; and as the batches
do not depend on the ranks, so does one process.

Shape letters: G members or tasks, N examples, B sequences of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from distmoe.data.batch import TaskBatch
from distmoe.models.comparison import Comparison, compared_features
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.parallel.placement import Placement
from distmoe.structure import transfer
from distmoe.structure.frontier import Frontier
from distmoe.structure.hosting import Hosting
from distmoe.structure.plan import tasks_of
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskGrouping, TaskSet
from distmoe.training.agreement import is_distributed
from distmoe.training.structural.probe import ProbeSet


@dataclass(frozen=True, kw_only=True)
class Comparer:
    """What a comparison needs; the model must be in evaluation mode.

    Attributes:
        model: This rank's.
        grouping: In force.
        placement: Of the grouping.
        routed_layers: Model layer of each routed layer.
        tasks: Of the run.
        probe: Sequences.
        rank: This rank.
        device: Of the model.
    """

    model: MultiTaskEncoder
    grouping: TaskGrouping
    placement: Placement
    routed_layers: Sequence[int]
    tasks: TaskSet
    probe: ProbeSet
    rank: int
    device: torch.device

    @torch.no_grad()
    def compare(self, frontier: Frontier, kind: Literal["transfer", "answers", "cka"]) -> Similarity:
        """Similarities of the frontier's members. Collective."""
        if kind == "cka":
            return self._cka(frontier)
        if kind == "answers":
            return self._transfer(frontier, self.model.answered_by, max(spec.num_outputs for spec in self.tasks))
        return self._transfer(frontier, self.model.served_by, self.model.shape.hidden_size)

    def _cka(self, frontier: Frontier) -> Similarity:
        """Of the outputs of the frontier's layer."""
        hosting = Hosting.of(frontier, self.grouping, self.placement)
        own = hosting.members_of(self.rank)
        layer, tasks = self.routed_layers[frontier.layer], tuple(frontier.members[place][0] for place in own)
        guide = frontier.members[0][0]
        # What a rank hosts at a layer, all ranks of its span host.
        hosts = hosting.hosts[own[0]] if own else ()
        features_GND = self._gather(
            len(frontier.members),
            own,
            hosts,
            lambda batch: compared_features(self.model.encoder, Comparison(batch, layer, tasks, guide)),
            width=self.model.shape.hidden_size,
        )
        return Similarity.from_features(features_GND)

    def _transfer(self, frontier: Frontier, features_of: Callable[[TaskBatch, int], Tensor], width: int) -> Similarity:
        """Of the labels that features of one task leave readable to another; members by the mean over their tasks."""
        tasks = tasks_of(frontier.members)
        hosted = self.placement.hosted_tasks(self.rank)
        own = tuple(place for place, task in enumerate(tasks) if task in hosted)
        hosts = next(host.ranks for host in self.placement.host_classes if self.rank in host.ranks)
        features_GND = self._gather(
            len(tasks),
            own,
            hosts,
            lambda batch: torch.stack([features_of(batch, tasks[place]) for place in own]),
            width=width,
        )
        targets_N, labels_N = self.probe.targets_and_labels()
        wanted = np.flatnonzero(np.isin(targets_N, tasks))
        targets_N, labels_N = np.searchsorted(tasks, targets_N[wanted]), labels_N[wanted]
        columns = [
            transfer.label_columns(labels_N[targets_N == place], 0 if spec.is_regression else spec.num_outputs)
            for place, spec in enumerate(self.tasks[task] for task in tasks)
        ]
        features = features_GND.cpu().numpy()[:, wanted]
        between_tasks = transfer.affinity(transfer.transfer_matrix(features, targets_N, columns))
        places = [np.searchsorted(tasks, member) for member in frontier.members]
        return Similarity.from_values(
            [[float(between_tasks[np.ix_(first, second)].mean()) for second in places] for first in places]
        )

    def _gather(
        self,
        count: int,
        own: tuple[int, ...],
        hosts: Sequence[int],
        features: Callable[[TaskBatch], Tensor],
        *,
        width: int,
    ) -> Tensor:
        """Features of all probe examples, float64 ``[count, N, D]``, zeros for what no rank computes. Collective.

        Args:
            count: Features to gather.
            own: Those that this rank computes.
            hosts: Ranks that compute the same ones.
            features: ``[len(own), B, D]`` of a batch.
            width: D.
        """
        probe = self.probe
        features_GND = torch.zeros(count, len(probe), width, dtype=torch.float64, device=self.device)
        for first in range(0, probe.num_batches, len(hosts)) if own else ():
            # All hosts run every round, also without a batch: they may be one block and exchange tokens.
            index = first + list(hosts).index(self.rank)
            real = index < probe.num_batches
            batch = probe.batch(index) if real else probe.no_rows(self.placement.hosted_tasks(self.rank)[0])
            found_GBD = features(batch.to(self.device))
            if real:
                features_GND[list(own), probe.rows_of(index)] = found_GBD.double()
        if is_distributed():
            dist.all_reduce(features_GND)
        return features_GND
