"""Configuration of the task grouping: who shares what with whom."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distmoe.config import Section


class LearnConfig(Section):
    """Structural learning (MTSL, arXiv 2305.00441)."""

    task_steps: int = Field(
        100, gt=0, description="Optimizer steps of training before each structural phase; too many over-fit first."
    )
    trial_steps: int = Field(
        100,
        ge=0,
        description="Steps with and without the proposed merges, from one state, before they are kept or undone; 0: no "
        "trial, every proposal is kept. Below 100 right merges may look wrong.",
    )
    similarity: Literal["transfer", "cka"] = Field(
        "transfer",
        description="What proposes merges. transfer: how well the layers of one task serve the labels of another, "
        "relative to other pairs; the merge of all candidates is tried beside. cka: the paper's; alike features.",
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
        description="Share of its tasks' validation loss that a merge may cost, against training on without it.",
    )
    confidence: float = Field(
        1.0,
        ge=0,
        description="Standard errors of that cost, over validation examples, that are forgiven as noise; larger keeps "
        "more merges.",
    )
    alignment: float = Field(
        0.2, ge=0, lt=1, description="Weight of the term that keeps unmerged layers comparable; near 1 all merge."
    )
    alignment_examples: int = Field(64, ge=4, description="Sequences of that term per micro-batch.")
    probe_examples: int = Field(1024, ge=4, description="Sequences on which task groups are compared.")


class StructureConfig(Section):
    grouping: Literal["one", "per_task", "family"] | list[list[str]] | list[list[list[str]]] = Field(
        "one",
        description="Task groups: all together, one per task, by TaskSpec.family, one partition for all routed layers, "
        "or one partition per routed layer (task names). With structure.learn, where learning starts.",
    )
    learn: LearnConfig | None = Field(
        None, description="Merge task groups while training, the first routed layer first; null: they stay as they are."
    )
