"""What joined layers are made with before a trial: Gram matrices, or layers that learned to stand in for others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distmoe.models.multitask import MultiTaskEncoder
from distmoe.training.structural.amalgamation import Amalgamation, CreatedLayer
from distmoe.training.structural.grams import MemberGrams, member_grams
from distmoe.training.structural.state import Pending

if TYPE_CHECKING:
    from distmoe.training.workshop import Run, Workshop


@dataclass(frozen=True)
class Makings:
    """What joined layers are made with, besides the members' weights and moments.

    Attributes:
        grams: What the members saw, for a mean by least squares.
        layers: Layers that learned to stand in for their members.
    """

    grams: MemberGrams = field(default_factory=dict)
    layers: tuple[CreatedLayer, ...] = ()


def prepare(workshop: Workshop, run: Run, pending: Pending) -> Makings:
    """What the joined layers of the plans are made with, from the model before them. Collective."""
    learn, engine = workshop.config.structure.learn, run.trainer.engine
    assert learn is not None, "structural learning without options"
    assert workshop.probe is not None, "structural learning without a probe set"
    assert isinstance(run.model, MultiTaskEncoder), "structural learning joins layers of encoders"
    plan = pending.plans[-1]
    # Without a trial the last plan is the only one that is made.
    merges = tuple(sorted(set(pending.merges if learn.trial_steps else plan.merges)))
    engine.eval_mode()
    try:
        if learn.amalgamation is not None:
            amalgamation = Amalgamation(
                model=run.model,
                config=workshop.config.model,
                options=learn.amalgamation,
                probe=workshop.probe,
                model_layers=workshop.plan.routed_layers,
                seed=workshop.config.run.seed,
                device=engine.device,
            )
            return Makings(layers=amalgamation.create(plan.before, merges, version=plan.version))
        if learn.mean == "least_squares" and merges:
            grams = member_grams(
                run.model,
                plan.before,
                merges,
                probe=workshop.probe,
                model_layers=workshop.plan.routed_layers,
                rank=workshop.env.rank,
                num_ranks=workshop.env.world_size,
                device=engine.device,
            )
            return Makings(grams=grams)
        return Makings()
    finally:
        engine.train_mode()
