"""Which runs a study takes: one per arm and seed, in an order in which whole seeds are complete first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distmoe.data.accounts import FORWARD_AND_BACKWARD
from distmoe.data.sources import load_tasks
from distmoe.errors import ConfigError
from distmoe.recipes import resolve
from distmoe.studies.study import Study


@dataclass(frozen=True)
class Job:
    """One arm with one seed.

    Attributes:
        arm: Name of the arm.
        seed: ``run.seed``.
        recipe: Recipe of its runs.
        runs: Overrides of each run by the run's name: one run, or one per task.
    """

    arm: str
    seed: int
    recipe: str
    runs: Mapping[str, tuple[str, ...]]


def order(study: Study, arms: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Returns (arm, seed), seed by seed; an arm comes after the one whose compute it gets.

    Raises:
        ConfigError: If the arm whose compute another gets is not among those that are trained.
    """
    for name in arms:
        paying = study.arms[name].compute_of
        if paying is not None and paying not in arms:
            raise ConfigError(
                f"arm {name} gets the compute of arm {paying}, which is not trained",
                got=f"--arms {','.join(arms)}",
                expected=f"{paying} among them",
                remedy=f"add {paying} to --arms",
            )
    by_dependency = sorted(arms, key=lambda name: study.arms[name].compute_of is not None)
    return [(name, seed) for seed in seeds for name in by_dependency]


def job_of(
    study: Study,
    arm: str,
    seed: int,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    forward_equivalents: int | None = None,
) -> Job:
    """Returns the runs of an arm with a seed.

    Args:
        study: The study.
        arm: Name of the arm.
        seed: Its seed.
        recipe: In place of the study's own recipe.
        overrides: Of all arms alike: data, encoder, steps. An arm's own win over them.
        forward_equivalents: What the arm of ``compute_of`` has used with this seed, where there is one.

    Raises:
        ConfigError: If the configuration is not one that can be trained.
    """
    base = study if recipe is None else study.model_copy(update={"recipe": recipe})
    stated = [override.replace("{seed}", str(seed)) for override in base.overrides_of(arm)]
    name, own = base.recipe_of(arm), [*overrides, *stated, f"run.seed={seed}"]
    config = resolve(name, own)
    steps = config.schedule.num_steps
    if study.arms[arm].compute_of is not None and forward_equivalents is not None:
        steps = math.ceil(forward_equivalents / (FORWARD_AND_BACKWARD * config.data.batch_size))
        own.append(f"schedule.num_steps={steps}")
    if not study.arms[arm].each_task:
        return Job(arm, seed, name, {f"{arm}-{seed}": tuple(own)})
    tasks, _ = load_tasks(config.tasks, config.data)
    share = [f"schedule.num_steps={math.ceil(steps / len(tasks))}"]
    return Job(
        arm, seed, name, {f"{arm}-{seed}-{task}": (*own, *share, f"tasks.names=[{task}]") for task in tasks.names}
    )


def paid_by(study: Study, arm: str, seed: int, records: Mapping[tuple[str, int], Mapping[str, Any]]) -> int | None:
    """Forward passes that the arm of ``compute_of`` has made with this seed; None where no arm pays, or not yet."""
    paying = study.arms[arm].compute_of
    if paying is None or (paying, seed) not in records:
        return None
    return int(records[paying, seed]["samples"]["forward_equivalents"])
