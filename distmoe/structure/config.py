"""Configuration of the task grouping: who shares what with whom."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distmoe.config import Section

PhaseSteps = int | list[int]
"""A number of steps, or one per structural phase; the last one goes on for all later phases."""


def steps_of(value: PhaseSteps, phase: int) -> int:
    """Steps of a phase, counted from 0."""
    return value if isinstance(value, int) else value[min(phase, len(value) - 1)]


class AmalgamationConfig(Section):
    """The paper's way to a joined layer: a fresh one learns to reproduce the layers that it replaces."""

    steps: PhaseSteps = Field(
        100, description="Optimizer steps of the new layer, or a list: one number per change of the structure."
    )
    lr: float = Field(1e-4, gt=0, description="Its learning rate, not decayed.")
    weight_decay: float = Field(5e-5, ge=0, description="Its weight decay, as in Adam: added to the gradient.")
    batch_size: int = Field(64, gt=0, description="Training examples per step, over all ranks.")
    gates: Literal["dropped", "none"] = Field(
        "dropped",
        description="dropped: one learned gate per replaced layer, thrown away afterwards (as published; the loss "
        "jumps). none: the new layer imitates the old ones directly.",
    )

    def steps_of(self, change: int) -> int:
        """Steps at a change of the structure, counted from 0."""
        return steps_of(self.steps, change)


class LearnConfig(Section):
    """Structural learning (MTSL, arXiv 2305.00441)."""

    task_steps: PhaseSteps = Field(
        100,
        description="Optimizer steps of training before each structural phase, or a list: one number per phase, the "
        "last one for all later phases. Too many over-fit first.",
    )
    amalgamation: AmalgamationConfig | None = Field(
        None,
        description="null: a joined layer is the mean of its members, aligned and weighted by tokens. Else it is a "
        "fresh one that learns to reproduce them, as in the paper; only model.moe.unit=block.",
    )
    mean: Literal["tokens", "least_squares"] = Field(
        "tokens",
        description="How experts are averaged: by their tasks' tokens; or so that the result comes closest to each of "
        "them on its own tasks' examples of the probe set (RegMean), at the cost of one pass and of matrices of "
        "width x width per expert. Only model.moe.unit=ffn.",
    )
    until: int | None = Field(
        None,
        gt=0,
        description="No structural phase behind this step, and no alignment term; null: as long as a trial fits before "
        "the end of training.",
    )
    trial_steps: int = Field(
        100,
        ge=0,
        description="Steps with and without the proposed merges, from one state, before they are kept or undone; 0: no "
        "trial, every proposal is kept. Below 100 right merges may look wrong.",
    )
    restart: bool = Field(
        False,
        description="true: learn the grouping, then train with it. There is one structural phase; a plan joins tasks "
        "at its layer and all deeper ones, is trained from the run's first step, and training goes on behind it. What "
        "the first task phase has trained is given up; a trial (trial_steps = task_steps; 0: none) compares with it.",
    )
    similarity: Literal["transfer", "answers", "cka"] = Field(
        "transfer",
        description="What proposes merges. transfer: how well the layers of one task serve the labels of another, "
        "relative to other pairs; answers: the same for what its head makes of them, which finds tasks that pull in "
        "one direction; with both, the merge of all candidates is tried beside. cka: the paper's; alike features.",
    )
    threshold: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="Only cka: similarity above which task groups are proposed; larger merges less, not portable "
        "between models.",
    )
    tolerance: float = Field(
        0.0,
        ge=0,
        description="Validation error that a merge may cost its tasks, against training on without it; 1 is the error "
        "of a constant answer. The merge of all candidates may cost nothing against the proposed task groups.",
    )
    confidence: float = Field(
        2.0,
        ge=0,
        description="Standard errors of that cost, over validation examples, that are forgiven as noise; larger keeps "
        "more merges.",
    )
    alignment: float = Field(
        0.2, ge=0, lt=1, description="Weight of the term that keeps unmerged layers comparable; near 1 all merge."
    )
    alignment_examples: int = Field(64, ge=4, description="Sequences of that term per micro-batch.")
    probe_examples: int = Field(1024, ge=4, description="Sequences on which task groups are compared.")
    probe_split: Literal["train", "validation"] = Field(
        "train",
        description="Where they come from. validation: labels that layers have memorised say nothing about what they "
        "have learned; not with an alignment term, which trains on them.",
    )

    def task_steps_of(self, phase: int) -> int:
        """Steps before a structural phase, counted from 0."""
        return steps_of(self.task_steps, phase)

    @property
    def is_relative(self) -> bool:
        """Whether the similarity says who is more alike than others, and not whether all are."""
        return self.similarity != "cka"

    @property
    def trial_steps_behind(self) -> int:
        """By how many steps a trial is behind the step of its structural phase; with a restart it ends there."""
        return 0 if self.restart else self.trial_steps


class StructureConfig(Section):
    grouping: Literal["one", "per_task", "family"] | list[list[str]] | list[list[list[str]]] = Field(
        "one",
        description="Task groups: all together, one per task, by TaskSpec.family, one partition for all routed layers, "
        "or one partition per routed layer (task names). With structure.learn, where learning starts.",
    )
    learn: LearnConfig | None = Field(
        None, description="Merge task groups while training, the first routed layer first; null: they stay as they are."
    )
