"""Command-line overrides ``section.key=value``, merged into the plain values of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import yaml

from distmoe.config.yaml_values import read_yaml
from distmoe.errors import ConfigError


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Returns a copy of ``values`` with every ``a.b.c=value`` applied; values are read as YAML scalars or lists.

    Raises:
        ConfigError: If an override has no ``=``, no section, descends into something that is not a section, or has a
            value that is no YAML.
    """
    merged = deepcopy(dict(values))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or "." not in key:
            raise ConfigError(
                "an override must name a section and a key",
                got=override,
                expected="section.key=value",
                remedy="for example model.moe.num_experts=16",
            )
        node = merged
        *parents, leaf = key.split(".")
        for depth, part in enumerate(parents):
            child = node.get(part)
            if child is None:
                child = node[part] = {}
            if not isinstance(child, dict):
                raise ConfigError(
                    f"{'.'.join(parents[: depth + 1])!r} is a value, not a section",
                    got=override,
                    expected="a section before the last dot",
                    remedy="remove the part after it",
                )
            node = child
        node[leaf] = _read(override, text)
    return merged


def _read(override: str, text: str) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError as failure:
        raise ConfigError(
            "the value of an override cannot be read",
            got=override,
            expected="a number, a text, null, a [list], or a {key: mapping}, as in YAML",
            remedy=f'quote what is meant as text: {override.partition("=")[0]}="..." '
            f"({getattr(failure, 'problem', None) or 'not YAML'})",
        ) from failure


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values of ``above`` win; two mappings under one key are merged, anything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = merged(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return result
