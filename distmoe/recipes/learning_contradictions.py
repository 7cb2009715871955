"""Keys of ``structure.learn`` that contradict each other or the model; see :mod:`distmoe.recipes.contradictions`."""

from __future__ import annotations

from distmoe.errors import ConfigError
from distmoe.moe.config import MoEConfig
from distmoe.structure.config import LearnConfig
from distmoe.training.config import RunConfig


def check_learning(config: RunConfig, learn: LearnConfig) -> None:
    """Refuses contradictions of structural learning.

    Raises:
        ConfigError: Naming both keys and which of them to change.
    """
    moe = config.model.moe
    if moe is None or (moe.experts_per_task_group is None and moe.experts_per_task is None):
        raise ConfigError(
            "structural learning changes the number of task groups, so experts cannot be counted per layer",
            got="model.moe=null" if moe is None else "model.moe.experts_per_task_group=null",
            expected="experts per task group (1: a feed-forward part of its own), or per task (merges pool them)",
            remedy="set model.moe.experts_per_task_group=1 or model.moe.experts_per_task=1, or structure.learn=null",
        )
    _check_schedule(learn, num_steps=config.schedule.num_steps)
    _check_means(config, moe, learn)
    _check_gate(moe)
    _check_model(config)
    if learn.restart:
        _check_restart(learn)


def _check_schedule(learn: LearnConfig, *, num_steps: int) -> None:
    _check_steps("task_steps", learn.task_steps)
    if learn.amalgamation is not None:
        _check_steps("amalgamation.steps", learn.amalgamation.steps)
    task_steps = learn.task_steps_of(0)
    if task_steps + learn.trial_steps_behind >= num_steps:
        raise ConfigError(
            "the first structural phase would end after training",
            got=f"structure.learn.task_steps={task_steps} + trial_steps={learn.trial_steps_behind}"
            f"{' (a restart tries beside the task phase)' if learn.restart else ''}, schedule.num_steps={num_steps}",
            expected=f"fewer than {num_steps} steps together",
            remedy="raise schedule.num_steps, or shorten structure.learn.task_steps or trial_steps",
        )
    if learn.until is not None and learn.until < task_steps:
        raise ConfigError(
            "learning would be over before the first structural phase",
            got=f"structure.learn.until={learn.until}, task_steps={task_steps}",
            expected=f"until >= {task_steps}, or null",
            remedy=f"set structure.learn.until={task_steps} or later",
        )
    if learn.probe_split == "validation" and learn.alignment:
        raise ConfigError(
            "the alignment term would train on validation texts",
            got=f"structure.learn.probe_split=validation, alignment={learn.alignment}",
            expected="alignment=0, or probe_split=train",
            remedy="set structure.learn.alignment=0 or structure.learn.probe_split=train",
        )
    if learn.alignment_examples > learn.probe_examples:
        raise ConfigError(
            "the alignment term takes its sequences from the probe set",
            got=f"structure.learn.alignment_examples={learn.alignment_examples}, probe_examples={learn.probe_examples}",
            expected=f"alignment_examples <= {learn.probe_examples}",
            remedy="raise structure.learn.probe_examples, or lower alignment_examples",
        )


def _check_means(config: RunConfig, moe: MoEConfig, learn: LearnConfig) -> None:
    if learn.amalgamation is not None and (moe.unit != "block" or config.parallel.placement != "colocated"):
        raise ConfigError(
            "only whole layers that every rank holds are amalgamated",
            got=f"structure.learn.amalgamation with model.moe.unit={moe.unit}, "
            f"parallel.placement={config.parallel.placement}",
            expected="model.moe.unit=block and parallel.placement=colocated",
            remedy="set both, or structure.learn.amalgamation=null: joined layers are means then",
        )
    if learn.mean == "least_squares" and (moe.unit != "ffn" or config.parallel.placement != "colocated"):
        raise ConfigError(
            "only feed-forward parts that every rank reaches are averaged by least squares",
            got=f"structure.learn.mean=least_squares with model.moe.unit={moe.unit}, "
            f"parallel.placement={config.parallel.placement}",
            expected="model.moe.unit=ffn and parallel.placement=colocated",
            remedy="set both, or structure.learn.mean=tokens",
        )


def _check_gate(moe: MoEConfig) -> None:
    if moe.experts_per_task is not None and moe.gate.kind == "fixed":
        raise ConfigError(
            "a fixed table of experts cannot follow task groups that pool their experts",
            got=f"model.moe.gate.kind=fixed, model.moe.experts_per_task={moe.experts_per_task}",
            expected="a gate that learns where tasks or tokens go",
            remedy="set model.moe.gate.kind=task or token",
        )
    if moe.gate.kind in ("task_embedding", "task_description") and moe.gate.router == "linear":
        raise ConfigError(
            "the rows of this gate cannot follow experts that are merged",
            got=f"model.moe.gate.kind={moe.gate.kind}, model.moe.gate.router=linear",
            expected="router mlp, or another gate",
            remedy="set model.moe.gate.router=mlp",
        )


def _check_model(config: RunConfig) -> None:
    model = config.model
    if model.conditional is not None or model.freeze not in ("none", "embeddings"):
        raise ConfigError(
            "structural learning compares trained layers of tasks that share everything above them",
            got=f"model.conditional={'null' if model.conditional is None else '...'}, model.freeze={model.freeze}",
            expected="no task-conditioned modules, and no frozen layers",
            remedy="set model.conditional=null and model.freeze=none while learning; train on with the learned "
            "structure.grouping",
        )
    if config.run.early_stop is not None:
        raise ConfigError(
            "early stopping would end training before the structure is learned",
            got=f"run.early_stop={config.run.early_stop} with structure.learn",
            expected="run.early_stop=null",
            remedy="remove run.early_stop",
        )


def _check_restart(learn: LearnConfig) -> None:
    if learn.alignment:
        raise ConfigError(
            "with a restart the arms are trained as runs that were told their grouping, without an alignment term",
            got=f"structure.learn.restart=true, alignment={learn.alignment}",
            expected="alignment=0",
            remedy="set structure.learn.alignment=0",
        )
    if learn.amalgamation is not None or learn.mean != "tokens":
        raise ConfigError(
            "with a restart nothing that was trained is joined",
            got=f"structure.learn.restart=true, mean={learn.mean}, "
            f"amalgamation={'null' if learn.amalgamation is None else 'set'}",
            expected="mean=tokens and amalgamation=null: before the first step all members are equal",
            remedy="set structure.learn.restart=false, or leave out mean and amalgamation",
        )
    task_steps = learn.task_steps_of(0)
    if learn.trial_steps not in (0, task_steps):
        raise ConfigError(
            "after a restart the arms of a trial take as many steps as the task phase that they are compared with",
            got=f"structure.learn.trial_steps={learn.trial_steps}, task_steps={task_steps}",
            expected=f"trial_steps={task_steps}, or 0 for no trial",
            remedy=f"set structure.learn.trial_steps={task_steps}",
        )


def _check_steps(key: str, value: int | list[int]) -> None:
    steps = [value] if isinstance(value, int) else value
    if not steps or min(steps) < 1:
        raise ConfigError(
            f"structure.learn.{key} must be a number of steps, or one per phase",
            got=value,
            expected="an integer > 0, or a list of at least one",
            remedy=f"correct structure.learn.{key}",
        )
