"""Type annotations of configuration keys, as words for users and as a path to walk."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_WORDS = {
    int: ("integer", "integers"),
    float: ("number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
}
_BOUNDS = (
    ("gt", ">"),
    ("ge", ">="),
    ("lt", "<"),
    ("le", "<="),
    ("min_length", "of length >="),
    ("max_length", "of length <="),
)
_OR_NULL = " | null"


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union without ``None``; of anything else, the annotation alone."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for member in get_args(annotation) if member is not type(None))
    return (annotation,)


def accepts_none(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def readable(annotation: Any) -> str:
    """Says what a key accepts: ``odd | even | all | list of integers``.

    A literal's choices come bare, as a user writes them in YAML; ``None`` is ``null``, again as in YAML.
    """
    words = [_one(member, 0) for member in alternatives(annotation)]
    return " | ".join([*words, "null"] if accepts_none(annotation) else words)


def accepts(field: FieldInfo) -> str:
    """:func:`readable` of a key, with its bounds: ``integer > 0 | null``."""
    words = readable(field.annotation)
    return _bounded(words.removesuffix(_OR_NULL), field) + (_OR_NULL if words.endswith(_OR_NULL) else "")


def _bounded(words: str, field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(bound, name)}" for bound in field.metadata for name, sign in _BOUNDS if hasattr(bound, name)
    ]
    return " ".join([words, ", ".join(bounds)]) if bounds else words


def _one(annotation: Any, plural: int) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return (" or " if plural else " | ").join(str(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_one(member, plural) for member in arguments)
    if origin is Annotated:
        return _bounded(_one(arguments[0], plural), arguments[1])
    if origin is list:
        return f"{'lists' if plural else 'list'} of {_one(arguments[0], 1)}"
    if origin is dict:
        return f"{'mappings' if plural else 'mapping'} of {_one(arguments[0], 0)} to {_one(arguments[1], 0)}"
    if annotation in _WORDS:
        return _WORDS[annotation][plural]
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        return "sections" if plural else "section with its own keys"
    return str(annotation)
