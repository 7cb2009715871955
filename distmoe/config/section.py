"""Strict, frozen configuration sections on pydantic, with errors in distmoe's four parts.

A section is declared beside the class that it configures::

    class DataConfig(Section):
        batch_size: int = Field(64, gt=0, description="Examples per optimizer step, over all ranks.")
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from distmoe.config.annotations import accepts, accepts_none, alternatives, readable
from distmoe.errors import ConfigError


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are never coerced silently, instances are frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,  # YAML spells them .inf and .nan, and no key means anything with them
    )


SectionT = TypeVar("SectionT", bound=Section)


def build(section: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """Validates plain values (from YAML and the command line) into a section.

    Raises:
        ConfigError: Naming the dotted key, the value, what was expected and the closest known key.
    """
    try:
        return section.model_validate(dict(values))
    except ValidationError as failure:
        raise _explain(section, values, failure) from None


def describe(section: type[Section], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Rows (key, what it accepts, default, description) of every key of a section and its sub-sections, for the docs.

    Defaults are written as in YAML. A section under free names (``tasks.hub``) shows ``<name>`` for the name.
    """
    rows: list[tuple[str, str, str, str]] = []
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        child, by_name = _section_of(field.annotation)
        if child is None or by_name or accepts_none(field.annotation):
            rows.append((key, accepts(field), _default(field), field.description or ""))
        if child is not None:
            rows += describe(child, f"{key}.<name>." if by_name else f"{key}.")
    return rows


def leaves(section: Section, prefix: str = "") -> dict[str, object]:
    """Values of a section and its sub-sections by dotted key; a sub-section that is switched off is itself a leaf."""
    found: dict[str, object] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, Section) else {f"{prefix}{name}": value}
    return found


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "the keys below" if isinstance(value, Section) else json.dumps(value)


def _section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section that a key holds, and whether it holds several of them under free names."""
    for candidate in alternatives(annotation):
        by_name = get_origin(candidate) is dict
        inner = get_args(candidate)[1] if by_name else candidate
        if isinstance(inner, type) and issubclass(inner, Section):
            return inner, by_name
    return None, False


def _explain(section: type[Section], values: Mapping[str, Any], failure: ValidationError) -> ConfigError:
    """Turns pydantic's report into one error about one key.

    pydantic reports a union once per alternative and appends the alternative to the location; users know
    neither. All reports below one key are therefore one problem, described by the whole annotation of the key.
    """
    reports = failure.errors()
    first = reports[0]
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, ConfigError):
        return raised
    path, expected = _locate(section, first["loc"])
    key = ".".join(path)
    others = {tuple(_locate(section, report["loc"])[0]) for report in reports} - {tuple(path)}
    tail = f" ({len(others)} more key{'s' if len(others) > 1 else ''} to correct after this one)" if others else ""
    if first["type"] == "extra_forbidden":
        return _unknown_key(section, path, first["input"], tail)
    if first["type"] == "missing":
        return ConfigError(
            f"key {key!r} is required{tail}",
            got="nothing",
            expected=expected,
            remedy=f"set {key} in the recipe or on the command line",
        )
    got = _value_at(values, path, default=first["input"])
    return ConfigError(
        f"key {key!r} has a value that does not fit{tail}",
        got=f"{got!r} ({type(got).__name__})",
        expected=f"{expected}, finite" if first["type"] == "finite_number" else expected,
        remedy=f"change {key} in the recipe or on the command line",
    )


def _unknown_key(section: type[Section], path: list[str], value: Any, tail: str) -> ConfigError:
    known = _keys_at(section, path[:-1])
    close = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"did you mean {'.'.join([*path[:-1], close[0]])}?" if close else "see docs/configuration.md for every key"
    return ConfigError(
        f"unknown key {'.'.join(path)!r}{tail}", got=value, expected=" | ".join(known) or "no key", remedy=hint
    )


def _locate(section: type[Section], location: tuple[int | str, ...]) -> tuple[list[str], str]:
    """Splits pydantic's location into the dotted key that a user can write, and says what that key accepts."""
    path: list[str] = []
    annotation: Any = section
    expected = readable(section)
    for part in map(str, location):
        child, by_name = _section_of(annotation)
        if child is None:
            break
        path.append(part)
        if by_name:
            annotation, expected = child, readable(child)
        elif part in child.model_fields:
            annotation, expected = child.model_fields[part].annotation, accepts(child.model_fields[part])
        else:
            break  # a key that the section does not know
    return path, expected


def _value_at(values: Any, path: list[str], default: Any) -> Any:
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return default
        values = values[part]
    return values


def _keys_at(section: type[Section], path: list[str]) -> list[str]:
    annotation: Any = section
    for part in path:
        child, by_name = _section_of(annotation)
        if child is None:
            return []
        annotation = child if by_name else child.model_fields[part].annotation
    child, by_name = _section_of(annotation)
    return [] if child is None or by_name else list(child.model_fields)
