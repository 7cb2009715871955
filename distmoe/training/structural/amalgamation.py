"""The paper's way to a joined layer: a fresh one learns to reproduce the layers that it replaces (unit ``block``).

For every merge a copy of the template (the pretrained layer, or the layer that all task groups started from) is trained
on the members' common input to give their outputs (:mod:`distmoe.structure.distillation`), by an Adam of its own and on
training examples of the merge's tasks. Nothing else is trained. The run itself is only read.

Every rank takes its share of each mini-batch and adds up the gradients, so all hold the same layer, and one process
trains it alike. Source: arXiv 2305.00441, as its published code does it (specification, section 2.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distmoe.checkpoint.import_hf import read_layer
from distmoe.models.build import build_plain_layer, reset_layer
from distmoe.models.comparison import states_before
from distmoe.models.config import ModelConfig
from distmoe.models.feed_forward import FIRST_POOL
from distmoe.models.layer import EncoderLayer
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.models.routed_layer import RoutedLayer
from distmoe.moe.routing import TokenContext
from distmoe.seed import derive
from distmoe.structure.config import AmalgamationConfig
from distmoe.structure.distillation import AmalgamationLoss
from distmoe.structure.plan import Merge
from distmoe.tasks import TaskGrouping
from distmoe.training.agreement import is_distributed
from distmoe.training.structural.probe import ProbeSet

_AHEAD = "amalgamation"


@dataclass(frozen=True)
class CreatedLayer:
    """A layer that learned to stand in for others.

    Attributes:
        merge: What it replaces.
        tensors: Its weights by name inside the layer, float32 on the CPU.
        losses: Of the first and the last mini-batch.
        steps: Optimizer steps that it took.
    """

    merge: Merge
    tensors: Mapping[str, Tensor]
    losses: tuple[float, float]
    steps: int

    def to_json(self) -> dict[str, Any]:
        return {"merge": self.merge.to_json(), "steps": self.steps, "losses": list(self.losses)}


@dataclass(frozen=True, kw_only=True)
class Amalgamation:
    """Creates joined layers from the model before a structural phase; every rank hosts every task group.

    Attributes:
        model: In evaluation mode.
        config: Of the model: templates are built from it.
        options: Length, learning rate, gates.
        probe: Where training examples come from.
        model_layers: Model layer of each routed layer.
        seed: Of the run.
        device: Of the model.
    """

    model: MultiTaskEncoder
    config: ModelConfig
    options: AmalgamationConfig
    probe: ProbeSet
    model_layers: tuple[int, ...]
    seed: int
    device: torch.device

    def create(self, grouping: TaskGrouping, merges: Sequence[Merge], *, version: int) -> tuple[CreatedLayer, ...]:
        """One layer per merge. Collective.

        Args:
            grouping: Before the merges.
            merges: Any, also such that exclude each other.
            version: Structure changes so far.
        """
        # Dropout of the new layers draws from streams of its own: a run that tries again gets the same layers.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            return tuple(self._create(grouping, merge, version) for merge in merges)

    def _create(self, grouping: TaskGrouping, merge: Merge, version: int) -> CreatedLayer:
        layer, steps = self.model_layers[merge.layer], self.options.steps_of(version)
        name = f"encoder.layers.{layer}.variants.{'+'.join(map(str, merge.result))}"
        rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
        torch.manual_seed(derive(self.seed, _AHEAD, version, name, rank))
        student = self._template(layer).to(self.device).train()
        loss_of = AmalgamationLoss(len(merge.members), self.model.shape.hidden_size, gates=self.options.gates)
        loss_of.reset(self.seed, f"{name}.{version}")
        loss_of = loss_of.to(self.device)
        parameters = [*student.parameters(), *loss_of.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.options.lr, weight_decay=self.options.weight_decay)
        routed = self.model.encoder.layers[layer]
        assert isinstance(routed, RoutedLayer)
        teachers = [routed.variants[f"g{grouping.layers[merge.layer].index(member)}"] for member in merge.members]
        losses: list[float] = []
        for step in range(steps):
            drawn, num_tokens = self.probe.draw(
                merge.result, step, self.options.batch_size, key=f"{name}.{version}", part=(rank, num_ranks)
            )
            batch, share = drawn.to(self.device), len(drawn.token_index_T) / num_tokens
            x_BSD = states_before(self.model.encoder, batch, layer, merge.result[0])
            mask_B11S = batch.attention_mask_BS[:, None, None, :]
            with torch.no_grad():
                outputs = [_run(teacher, x_BSD, mask_B11S) for teacher in teachers]  # type: ignore[arg-type]
            loss = share * loss_of(_run(student, x_BSD.float(), mask_B11S), outputs, batch.attention_mask_BS)
            optimizer.zero_grad()
            loss.backward()
            losses.append(_sum_over_ranks(parameters, loss.detach()))
            optimizer.step()
        tensors = {key: value.detach().float().cpu() for key, value in student.state_dict().items()}
        return CreatedLayer(merge, tensors, (losses[0], losses[-1]), steps)

    def _template(self, layer: int) -> EncoderLayer:
        """What every task group's layer was at the start of the run."""
        fresh = build_plain_layer(self.config, self.model.shape)
        reset_layer(fresh, self.seed, f"encoder.layers.{layer}.variants.{FIRST_POOL}", self.config.init_std)
        if self.config.pretrained is not None:
            fresh.load_state_dict(read_layer(self.config.pretrained, layer, self.model.shape))
        return fresh


def _run(layer: EncoderLayer, x_BSD: Tensor, mask_B11S: Tensor) -> Tensor:
    """A dense layer routes nothing, so it reads neither tokens nor tasks."""
    nothing = torch.zeros(0, dtype=torch.int64, device=x_BSD.device)
    y_BSD: Tensor
    y_BSD, _ = layer(x_BSD, mask_B11S, nothing, TokenContext(nothing, nothing, len(x_BSD)))
    return y_BSD


def _sum_over_ranks(parameters: list[nn.Parameter], loss: Tensor) -> float:
    """Adds up gradients in place, and returns the sum of the losses; one all-reduce."""
    if not is_distributed():
        return loss.item()
    gradients = [parameter.grad for parameter in parameters]
    assert all(gradient is not None for gradient in gradients), "a parameter of a new layer has no gradient"
    flat = torch.cat([loss.view(1), *(gradient.flatten() for gradient in gradients)])  # type: ignore[union-attr]
    dist.all_reduce(flat)
    total, *summed = flat.split([1, *(parameter.numel() for parameter in parameters)])
    for parameter, gradient in zip(parameters, summed, strict=True):
        parameter.grad = gradient.view_as(parameter)
    return total.item()
