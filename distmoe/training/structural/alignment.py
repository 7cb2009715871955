"""The alignment term of a task phase: unmerged layers of a frontier stay comparable (specification, section 4.6).

Per frontier ``1 - mean over pairs of CKA`` on a mini-batch of the probe set that all task groups see. A rank runs the
sequences through the task groups that it hosts and learns the other features from one sum over all ranks.

Shape letters: G members of a frontier, B sequences, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from distmoe.models.comparison import Comparison
from distmoe.parallel.placement import Placement
from distmoe.structure.cka import alignment_loss
from distmoe.structure.frontier import Frontier
from distmoe.structure.hosting import Hosting
from distmoe.tasks import TaskGrouping
from distmoe.training.structural.probe import ProbeSet


@dataclass(frozen=True)
class _Part:
    """A frontier as one rank sees it."""

    frontier: Frontier
    hosting: Hosting


class AlignmentTerm:
    """Asks the model for features and turns them into a loss. Collective where some rank lacks some task group.

    Args:
        probe: Where mini-batches come from.
        model_layers: Model layer of each routed layer.
        grouping: In force; constant until the engine is built anew.
        placement: Of the grouping.
        rank: This rank.
        weight: Of the term.
        num_examples: Of a mini-batch.
        width: D.
        device: Of the model.
    """

    def __init__(
        self,
        *,
        probe: ProbeSet,
        model_layers: Sequence[int],
        grouping: TaskGrouping,
        placement: Placement,
        rank: int,
        weight: float,
        num_examples: int,
        width: int,
        device: torch.device,
    ) -> None:
        self._probe, self._layers = probe, tuple(model_layers)
        self._grouping, self._placement, self._rank = grouping, placement, rank
        self.weight, self._num_examples, self._width, self._device = weight, num_examples, width, device
        self._parts: tuple[_Part, ...] = ()

    def follow(self, frontiers: Sequence[Frontier]) -> None:
        """Goes on with other frontiers; with none, the term is 0 and costs nothing."""
        self._parts = tuple(
            _Part(frontier, Hosting.of(frontier, self._grouping, self._placement)) for frontier in frontiers
        )

    def comparisons(self, index: int) -> tuple[Comparison, ...]:
        """What micro-batch ``index`` of the run must compare here: another window of the probe set each time."""
        own = [(part, part.hosting.members_of(self._rank)) for part in self._parts]
        if not any(members for _, members in own):
            return ()
        batch = self._probe.window(index, self._num_examples).to(self._device)
        return tuple(
            Comparison(
                batch,
                self._layers[part.frontier.layer],
                tuple(part.frontier.members[member][0] for member in members),
                guide=part.frontier.members[0][0],
            )
            for part, members in own
            if members
        )

    def loss(self, features: Sequence[Tensor]) -> Tensor:
        """Sum over frontiers, unweighted; its gradient's mean over ranks is that of one process.

        Args:
            features: Of :meth:`comparisons`, in their order.
        """
        total, found = torch.zeros((), device=self._device), iter(features)
        for part in self._parts:
            members = part.hosting.members_of(self._rank)
            own_gBD = next(found) if members else None
            if not part.hosting.is_everywhere:
                own_gBD = self._with_others(part, members, own_gBD)
            assert own_gBD is not None
            total = total + alignment_loss(own_gBD)
        return total

    def _with_others(self, part: _Part, members: tuple[int, ...], own_gBD: Tensor | None) -> Tensor:
        """All members' features ``[G, B, D]``. Collective.

        Gradients flow into the own ones only. The engine averages gradients over all ranks, but a member has them on
        its hosts alone: they are scaled so that the mean is what it would be if every rank hosted it.
        """
        hosting, num_members = part.hosting, len(part.frontier.members)
        shape = (num_members, self._num_examples, self._width)
        features_GBD = torch.zeros(shape, dtype=torch.float32, device=self._device)
        if own_gBD is not None:
            for place, member in enumerate(members):
                # One host speaks for all: adding equal values up and dividing would round.
                if hosting.hosts[member][0] == self._rank:
                    features_GBD[member] = own_gBD[place].detach()
        dist.all_reduce(features_GBD)
        if own_gBD is None:
            return features_GBD
        scales_g11 = own_gBD.new_tensor([hosting.num_ranks / len(hosting.hosts[member]) for member in members])
        own_gBD = own_gBD.float()
        own_gBD.register_hook(lambda gradient_gBD: gradient_gBD * scales_g11.view(-1, 1, 1))
        return features_GBD.index_copy(0, torch.tensor(members, device=self._device), own_gBD)
