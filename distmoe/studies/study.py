"""What a study compares: arms in a YAML file, shipped beside this file or written by a user.

An arm is a recipe and what it changes, so that a run of an arm is a command that a person can type::

    question: Do conditional modules help?
    recipe: ca_mtl                  # of every arm that names no other
    arms:
      C: {title: half frozen, overrides: [model.conditional=null]}
      D: {title: conditional}
      I: {title: uncertainty sampling, like: D, overrides: [data.sampling.strategy=uncertainty]}
    comparisons:
      - {claim: conditional modules help, arm: D, against: C}

``like`` starts from another arm's recipe and overrides. An arm ``J.uniform`` is a variant of J: choosing J means all of
its variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import Field

from distmoe.config import Section, build
from distmoe.errors import ConfigError

_FOLDER = Path(__file__).parent


class Arm(Section):
    """One way to train; a study trains it once per seed."""

    title: str = Field(min_length=1, description="What it is, for tables.")
    recipe: str | None = Field(None, description="Recipe; null: that of the arm in like, else the study's.")
    like: str | None = Field(None, description="Arm whose recipe and overrides come first.")
    overrides: list[str] = Field(
        default_factory=list, description="section.key=value, as on a command line; {seed} stands for the seed."
    )
    each_task: bool = Field(
        False, description="One model per task, each with its share of the steps; scores are put side by side."
    )
    compute_of: str | None = Field(
        None, description="Arm whose compute it gets: as many updates as that arm's forwards pay for, seed by seed."
    )


class Comparison(Section):
    """A claim about two arms, decided by the interval of their difference."""

    claim: str = Field(min_length=1, description="What is supported if the difference is as expected.")
    arm: str = Field(description="Minuend.")
    against: str = Field(description="Subtrahend.")
    expect: str = Field("higher", pattern="^(higher|equal)$", description="higher: the interval lies above 0; equal: 0 "
                        "lies in it, which a wide interval makes easy: read its width.")  # fmt: skip


class Study(Section):
    """Arms and what to conclude from them."""

    question: str = Field(min_length=1, description="Heading of the table.")
    recipe: str = Field(description="Recipe of every arm that names no other.")
    arms: dict[str, Arm] = Field(min_length=1, description="Name -> arm, in the order of the table.")
    comparisons: list[Comparison] = Field(default_factory=list, description="Rows of the second table.")

    def model_post_init(self, _context: object) -> None:
        """Refuses names of arms that are not there, and arms that pay with what they are paid.

        Raises:
            ConfigError: Naming the arm that refers to them.
        """
        for name, arm in self.arms.items():
            for key, other in (("like", arm.like), ("compute_of", arm.compute_of)):
                if other is not None and (other not in self.arms or other == name):
                    raise self._unknown(f"{key} of arm {name}", other)
            paying = None if arm.compute_of is None else self.arms[arm.compute_of].compute_of
            if paying is not None:
                raise ConfigError(
                    f"arm {name} gets the compute of an arm that gets another's itself",
                    got=f"compute_of: {name} -> {arm.compute_of} -> {paying}",
                    expected="compute_of an arm with steps of its own",
                    remedy=f"set compute_of of arm {name} to {paying}, or remove it",
                )
        for comparison in self.comparisons:
            for other in (comparison.arm, comparison.against):
                if other not in self.arms:
                    raise self._unknown(f"the comparison {comparison.claim!r}", other)
        for name in self.arms:
            self.lineage(name)

    def lineage(self, name: str) -> list[Arm]:
        """The arms that ``name`` is made of, the one it starts from first.

        Raises:
            ConfigError: If an arm starts from itself.
        """
        names = [name]
        while (below := self.arms[names[0]].like) is not None:
            if below in names:
                raise ConfigError(
                    f"arm {name} starts from itself",
                    got=" <- ".join([below, *names]),
                    expected="a chain of arms that ends",
                    remedy=f"remove like from arm {below}",
                )
            names.insert(0, below)
        return [self.arms[one] for one in names]

    def recipe_of(self, name: str) -> str:
        """The recipe of an arm."""
        named = [arm.recipe for arm in self.lineage(name) if arm.recipe is not None]
        return named[-1] if named else self.recipe

    def overrides_of(self, name: str) -> list[str]:
        """The overrides of an arm, those that it starts from first; of two with one key the later wins."""
        return [override for arm in self.lineage(name) for override in arm.overrides]

    def arm_lines(self) -> list[str]:
        """The arms for a person who chooses among them: name, title, recipe."""
        width = max(map(len, self.arms))
        return [f"{name:{width}}  {arm.title} ({self.recipe_of(name)})" for name, arm in self.arms.items()]

    def choose(self, wanted: Sequence[str]) -> list[str]:
        """Returns the arms of ``wanted`` in the study's order; a name stands for all of its variants, nothing for all.

        Raises:
            ConfigError: If there is no such arm.
        """
        for name in wanted:
            if not any(_is_of(arm, name) for arm in self.arms):
                raise self._unknown("--arms", name)
        return [arm for arm in self.arms if not wanted or any(_is_of(arm, name) for name in wanted)]

    def _unknown(self, where: str, name: str) -> ConfigError:
        return ConfigError(
            f"{where} names an arm that the study does not have",
            got=name,
            expected=" | ".join(self.arms),
            remedy="correct the name",
        )


def available() -> list[str]:
    """Names of the shipped studies, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_study(name_or_path: str) -> Study:
    """Returns a shipped study, or one from a YAML file.

    Raises:
        ConfigError: If there is none, or it is not a study.
    """
    path = _FOLDER / f"{name_or_path}.yaml"
    path = path if path.is_file() else Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            "no such study",
            got=name_or_path,
            expected=f"{' | '.join(available())} | the path of a YAML file",
            remedy="correct the name",
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as failure:
        raise ConfigError(
            f"study {path} is not YAML",
            got=" ".join(str(failure).split()),
            expected="keys question, recipe, arms, comparisons",
            remedy="correct the file at the line named above",
        ) from None
    return build(Study, values if isinstance(values, dict) else {})


def _is_of(arm: str, name: str) -> bool:
    return arm == name or arm.startswith(f"{name}.")
