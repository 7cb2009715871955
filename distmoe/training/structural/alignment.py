"""The alignment term of a task phase: unmerged layers of a frontier stay comparable (specification, section 4.6).

Per frontier ``1 - mean over pairs of CKA`` on a mini-batch of the probe set that all task groups see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distmoe.models.comparison import Comparison
from distmoe.structure.cka import alignment_loss
from distmoe.structure.frontier import Frontier
from distmoe.training.structural.probe import ProbeSet


class AlignmentTerm:
    """Asks the model for features and turns them into a loss. Every rank hosts every task group and sees all rows.

    Args:
        frontiers: Whose members are kept comparable.
        probe: Where mini-batches come from.
        model_layers: Model layer of each routed layer.
        weight: Of the term.
        num_examples: Of a mini-batch.
        device: Of the model.
    """

    def __init__(
        self,
        frontiers: Sequence[Frontier],
        *,
        probe: ProbeSet,
        model_layers: Sequence[int],
        weight: float,
        num_examples: int,
        device: torch.device,
    ) -> None:
        self._probe, self._layers = probe, tuple(model_layers)
        self.follow(frontiers)
        self.weight, self._num_examples, self._device = weight, num_examples, device

    def follow(self, frontiers: Sequence[Frontier]) -> None:
        """Goes on with other frontiers; with none, the term is 0 and costs nothing."""
        self._frontiers = tuple(frontiers)

    def comparisons(self, index: int) -> tuple[Comparison, ...]:
        """What micro-batch ``index`` of the run must compare: another window of the probe set each time."""
        if not self._frontiers:
            return ()
        batch = self._probe.window(index, self._num_examples).to(self._device)
        return tuple(
            Comparison(batch, self._layers[frontier.layer], tuple(member[0] for member in frontier.members))
            for frontier in self._frontiers
        )

    def loss(self, features: Sequence[Tensor]) -> Tensor:
        """Sum over frontiers, unweighted."""
        start = torch.zeros((), device=self._device)
        return sum((alignment_loss(features_GBD) for features_GBD in features), start=start)
