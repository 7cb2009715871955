"""Recipes: run configurations in YAML, shipped beside this file or written by a user.

A recipe lists only what differs from the defaults of the sections. ``extends`` names the recipe that it
starts from (a shipped name, or a path relative to the file that says so)::

    extends: nlu
    run: {name: nlu_dense}
    model: {moe: null}        # null switches a section off; mappings are merged key by key

``resolve("nlu_dense", ["data.root=DATA"])`` gives the checked ``RunConfig`` of a command line.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from distmoe.config import apply_overrides, build, merged, read_yaml
from distmoe.errors import ConfigError
from distmoe.recipes.contradictions import check
from distmoe.training.config import RunConfig

DEFAULT_RECIPE = "demo"

_FOLDER = Path(__file__).parent


def available() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(name_or_path: str) -> dict[str, Any]:
    """Returns the plain values of a recipe, with everything that it extends merged below it.

    Args:
        name_or_path: A name of :func:`available`, or the path of a YAML file.

    Raises:
        ConfigError: If there is no such recipe, it is not a mapping of sections, or it extends itself.
    """
    return _load(_locate(name_or_path, Path.cwd()), ())


def resolve(name_or_path: str, overrides: Iterable[str] = ()) -> RunConfig:
    """Returns the checked configuration of ``--recipe NAME section.key=value ...``.

    Raises:
        ConfigError: If a key is unknown, a value does not fit, or two values contradict each other.
    """
    config = build(RunConfig, apply_overrides(load_recipe(name_or_path), overrides))
    check(config)
    return config


def _locate(name_or_path: str, folder: Path) -> Path:
    shipped = _FOLDER / f"{name_or_path}.yaml"
    if shipped.is_file():
        return shipped
    path = folder / name_or_path
    if path.is_file():
        return path.resolve()
    raise ConfigError(
        "no such recipe",
        got=name_or_path,
        expected=f"{' | '.join(available())} | the path of a YAML file",
        remedy="correct --recipe, or extends in the recipe",
    )


def _load(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    if path in chain:
        raise ConfigError(
            f"recipe {path.name} extends itself",
            got=" -> ".join(step.name for step in (*chain, path)),
            expected="a chain of recipes that ends",
            remedy=f"remove extends from {chain[-1].name}",
        )
    values = _read(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise ConfigError(
            f"recipe {path.name}: extends must name one recipe",
            got=parent,
            expected="a recipe's name or path",
            remedy="chain recipes: let the second extend the first",
        )
    return merged(_load(_locate(parent, path.parent), (*chain, path)), values)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as failure:
        raise ConfigError(
            f"recipe {path} is not YAML",
            got=" ".join(str(failure).split()),
            expected="sections with indented keys",
            remedy="correct the file at the line named above",
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(
            f"recipe {path} is not a mapping of sections",
            got=type(values).__name__,
            expected=" | ".join(RunConfig.model_fields),
            remedy="see docs/recipes.md",
        )
    return values
