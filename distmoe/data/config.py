"""Configuration of tasks and data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distmoe.config import Section
from distmoe.data.shift import Shift
from distmoe.errors import ConfigError
from distmoe.tasks import MetricName, TaskKind


class SuiteConfig(Section):
    """The embedded suite: deterministic text tasks with planted task groups."""

    num_task_groups: int = Field(
        3,
        gt=0,
        le=18,  # the class borders are found from all 2**M values of M attributes, about one per group
        description="Planted task groups; different groups conflict on the same inputs.",
    )
    tasks_per_group: int = Field(3, gt=0, description="Related tasks per planted group; the last one is low-resource.")
    num_unrelated: int = Field(0, ge=0, description="Extra tasks that share features with no other.")
    signs: Literal["task", "family"] = Field(
        "task",
        description="Who draws the signs of the features' weights. family: related tasks want their features in one "
        "direction and differ in their strengths, so that one's examples teach the others; task: only the features "
        "are shared.",
    )
    train_examples: int = Field(2000, gt=0, description="Training examples of an ordinary task.")
    low_resource_examples: int = Field(
        96, gt=0, description="Training examples of the low-resource task of each group."
    )
    eval_examples: int = Field(300, gt=0, description="Examples of each validation and each test split.")
    generator_seed: int = Field(
        0, ge=0, description="Seed of the planted functions and texts, independent of run.seed."
    )


class TextSuiteConfig(Section):
    """The embedded texts: corpora of planted grammars, or text-to-text tasks."""

    kind: Literal["language_modeling", "generation"] = Field(
        "language_modeling", description="Corpora, or the tasks reverse, translate, shorten and add."
    )
    num_families: int = Field(2, gt=0, description="Only corpora: grammars, which contradict each other.")
    corpora_per_family: int = Field(2, gt=0, description="Only corpora: tasks with the same grammar.")
    document_words: int = Field(48, gt=1, description="Only corpora: longest document; the shortest has half as many.")
    train_examples: int = Field(2000, gt=0, description="Training documents or pairs of each task.")
    eval_examples: int = Field(100, gt=0, description="Documents or pairs of each validation and each test split.")
    generator_seed: int = Field(0, ge=0, description="Seed of grammars and texts, independent of run.seed.")


def _default_splits() -> dict[Literal["train", "validation", "test"], str]:
    return {"train": "train", "validation": "validation"}


class HubTaskConfig(Section):
    path: str = Field(description="Data set name on the Hugging Face hub, or anything datasets.load_dataset takes.")
    config_name: str | None = Field(None, description="Configuration of the data set, for example a GLUE task.")
    kind: TaskKind = Field(description="Type of the task.")
    metric: MetricName = Field(description="Its score.")
    text: str = Field(description="Column of the first text.")
    text_pair: str | None = Field(None, description="Column of the second text.")
    label: str = Field("label", description="Column of the label.")
    target: str = Field("target", description="Only generation: column of the answer.")
    references: str = Field(
        "references", description="Only generation: column of all right answers, where the data set has one."
    )
    labels: list[str] = Field(
        default_factory=list, description="Class names by id; empty: taken from the data set's features."
    )
    splits: dict[Literal["train", "validation", "test"], str] = Field(
        default_factory=_default_splits,
        description="distmoe split -> data set split; without test, validation is reported.",
    )
    family: str | None = Field(None, description="Free label of related tasks.")
    description: str | None = Field(None, description="A sentence about the task.")


class IndexedTaskConfig(Section):
    kind: Literal["language_modeling", "generation"] = Field(
        "language_modeling", description="Plain documents, or documents of prompt and target."
    )
    metric: MetricName = Field("inverse_perplexity", description="Its score.")
    train: str | list[str] | dict[str, float] = Field(
        description="Indexed set(s) without suffix, below data.root; with weights: a blend, only of plain documents."
    )
    validation: str | list[str] = Field(description="Indexed set(s) without suffix.")
    test: str | list[str] | None = Field(None, description="Indexed set(s); null: validation is reported.")
    family: str | None = Field(None, description="Free label of related tasks.")
    description: str | None = Field(None, description="A sentence about the task.")


class TasksConfig(Section):
    source: Literal["suite", "text_suite", "local", "hub", "indexed"] = Field(
        "suite",
        description="Embedded suite, embedded texts for language models, folders under data.root, the Hugging Face "
        "hub, or indexed sets of token ids.",
    )
    names: list[str] | None = Field(None, description="Tasks in order; null: all that the source offers.")
    suite: SuiteConfig = Field(default_factory=SuiteConfig)
    text_suite: TextSuiteConfig = Field(default_factory=TextSuiteConfig)
    folders: dict[str, str] = Field(
        default_factory=dict,
        description="Task name -> folder with task.json: tasks besides those of the source, for example an added one.",
    )
    hub: dict[str, HubTaskConfig] = Field(default_factory=dict, description="Task name -> where it is on the hub.")
    indexed: dict[str, IndexedTaskConfig] = Field(
        default_factory=dict, description="Task name -> its indexed sets (tools/preprocess_indexed.py)."
    )


class SamplingConfig(Section):
    strategy: Literal["size_proportional", "temperature", "uniform", "round_robin", "uncertainty"] = Field(
        "size_proportional",
        description="How the task of each example is drawn; uncertainty: the model scores candidates of every task "
        "and the most uncertain ones are trained.",
    )
    temperature: float = Field(
        5.0, ge=1, description="Only temperature: p_t ~ n_t^(1/temperature); 1 is size-proportional, large is uniform."
    )
    tasks: list[str] | None = Field(
        None,
        min_length=1,
        description="Tasks whose examples are trained; null: all. The others are evaluated, and nothing else.",
    )
    candidates: int | None = Field(
        None,
        gt=0,
        description="Only uncertainty: candidates of every task per step, each a forward pass; null: data.batch_size.",
    )
    score: Literal["paper", "repo", "task_rank"] = Field(
        "paper",
        description="Only uncertainty: entropy / log(classes); the same times the task's mean over the largest task "
        "mean (the published code); or its rank inside the task.",
    )
    regression_score: dict[str, Literal["error"] | float] = Field(
        default_factory=dict,
        description="Only uncertainty: score of each regression task, which has no entropy. error: "
        "1 - exp(-squared error / variance of the labels); a number from 0 to 1: always that.",
    )
    quota: int = Field(
        0, ge=0, description="Only uncertainty: examples of every task that each choice takes, uncertain or not."
    )
    scope: Literal["global", "rank"] = Field(
        "global",
        description="Only uncertainty: choose from the candidates of all ranks that host the same tasks, or each "
        "rank from its own part of them (the published code).",
    )
    trunk_cache: int = Field(
        1024,
        ge=0,
        description="Only uncertainty: MiB of host memory per rank for what frozen, unconditioned layers give on "
        "examples that a run scores more than once; 0: none.",
    )
    bucket_window: int = Field(
        16,
        gt=0,
        description="Optimizer steps drawn at once and sorted by length into steps; 1 switches length buckets off.",
    )


class ShiftsConfig(Section):
    """Changes of the test texts; under each of them the test split is scored once more at the end of a run."""

    noise: list[float] = Field(
        default_factory=list, description="Shares of the words that are replaced by random words of the task's texts."
    )
    drop: list[float] = Field(default_factory=list, description="Shares of the words that are left out.")
    longer: list[float] = Field(
        default_factory=list,
        description="Factors by which texts become longer; filler words are put between the others.",
    )

    @property
    def all(self) -> tuple[Shift, ...]:
        """Every shift, in the order of the keys."""
        return (
            *(Shift("noise", strength) for strength in self.noise),
            *(Shift("drop", strength) for strength in self.drop),
            *(Shift("longer", strength) for strength in self.longer),
        )

    def model_post_init(self, _context: object) -> None:
        """Refuses strengths that are none.

        Raises:
            ConfigError: Naming the key.
        """
        fits = {"noise": lambda s: 0 < s <= 1, "drop": lambda s: 0 < s < 1, "longer": lambda s: s > 1}
        bounds = {"noise": "above 0, at most 1", "drop": "above 0, below 1", "longer": "above 1"}
        for kind, bound in bounds.items():
            values = getattr(self, kind)
            if len(set(values)) < len(values) or not all(fits[kind](value) for value in values):
                raise ConfigError(
                    f"data.shifts.{kind} has a strength that is none, or one twice",
                    got=values,
                    expected=f"different numbers {bound}",
                    remedy=f"correct data.shifts.{kind}",
                )


class DataConfig(Section):
    root: str | None = Field(
        None,
        description="Folder of task folders (each with task.json) when tasks.source is local; of indexed sets when it "
        "is indexed; other sources read none.",
    )
    tokenizer: str | None = Field(
        None,
        description="Hugging Face tokenizer folder, or SentencePiece .model file; null: the pretrained model's, or the "
        "embedded word tokenizer.",
    )
    max_length: int = Field(
        128, gt=2, description="Longest sequence in tokens; longer texts are truncated, counted and reported."
    )
    prompt: str = Field(
        "{text}\n", description="Template of the prompt of generation tasks; the target follows it at once."
    )
    batch_size: int = Field(64, gt=0, description="Examples per optimizer step, over all ranks and accumulation steps.")
    micro_batch_size: int | None = Field(
        None, gt=0, description="Examples per rank and forward pass; null: batch_size / ranks, no accumulation."
    )
    eval_batch_size: int = Field(64, gt=0, description="Examples per rank and evaluation forward pass.")
    max_train_examples: int | None = Field(
        None, gt=0, description="Keeps only the first examples of each training split; reported."
    )
    task_loss: Literal["example_mean", "task_sum", "task_mean"] = Field(
        "example_mean",
        description="example_mean: every example weighs the same. task_sum: sum over the step's tasks of each task's "
        "mean loss; task_mean: the mean of them. Both count tasks over all ranks.",
    )
    cache_dir: str = Field(
        "runs/cache", description="Folder of tokenized examples, keyed by everything that shaped them."
    )
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    shifts: ShiftsConfig = Field(default_factory=ShiftsConfig)
