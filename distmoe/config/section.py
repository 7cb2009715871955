"""Strict, frozen configuration sections on pydantic, with errors in distmoe's four parts.

A section is declared beside the class that it configures::

    class DataConfig(Section):
        batch_size: int = Field(64, gt=0, description="Examples per optimizer step, over all ranks.")
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from distmoe.errors import ConfigError


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are never coerced silently, instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, protected_namespaces=())


SectionT = TypeVar("SectionT", bound=Section)


def build(section: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """Validates plain values (from YAML and the command line) into a section.

    Raises:
        ConfigError: Naming the dotted key, the value, what was expected and the closest known key.
    """
    try:
        return section.model_validate(dict(values))
    except ValidationError as failure:
        raise _explain(section, failure) from None


def describe(section: type[Section], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Rows (key, type, default, description) of every key of a section and its sub-sections, for the docs."""
    rows: list[tuple[str, str, str, str]] = []
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        child = _section_of(field.annotation)
        if child is not None:
            rows += describe(child, f"{key}.")
        else:
            kind = getattr(field.annotation, "__name__", str(field.annotation)) if isinstance(field.annotation, type) else str(field.annotation)
            default = field.default_factory() if field.default_factory is not None else field.default  # type: ignore[call-arg]
            rows.append((key, kind.replace("typing.", ""), repr(default), field.description or ""))
    return rows


def _section_of(annotation: Any) -> type[Section] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _explain(section: type[Section], failure: ValidationError) -> ConfigError:
    first = failure.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _keys_at(section, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {'.'.join([*path[:-1], close[0]])}?" if close else "see docs/configuration.md for every key"
        return ConfigError(f"unknown key {key!r}", got=first["input"], expected=" | ".join(known) or "no key", remedy=hint)
    if isinstance(first.get("ctx", {}).get("error"), ConfigError):
        return first["ctx"]["error"]
    more = failure.error_count() - 1
    tail = f" ({more} more problem{'s' if more > 1 else ''} after this one)" if more else ""
    return ConfigError(f"key {key!r} has a value that does not fit{tail}", got=f"{first['input']!r} ({type(first['input']).__name__})",
                       expected=first["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
                       remedy=f"change {key} in the recipe or on the command line")


def _keys_at(section: type[Section], path: list[str]) -> list[str]:
    for part in path:
        field = section.model_fields.get(part)
        child = _section_of(field.annotation) if field is not None else None
        if child is None:
            return []
        section = child
    return list(section.model_fields)
