"""Walk the config models: which sections may stand at a key, and in words which values it takes."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_PLURALS = {"string": "strings", "integer": "integers", "number": "numbers"}


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of an annotation, `Annotated` unwrapped and unions flattened; NoneType stands for null."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for argument in get_args(annotation) for member in members(argument))
    return (annotation,)


def is_nullable(annotation: Any) -> bool:
    """Return whether null may stand at a key of this annotation."""
    return type(None) in members(annotation)


def sections(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the models that may stand at a key; several are told apart by their `kind`; none means a plain value."""
    return tuple(member for member in members(annotation) if isinstance(member, type) and issubclass(member, BaseModel))


def item_sections(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the models that may stand at each entry of a key that holds a list or a mapping of them."""
    found = [member for member in members(annotation) if get_origin(member) in (dict, tuple)]
    items = [get_args(member)[1 if get_origin(member) is dict else 0] for member in found]
    return tuple(section for item in items for section in sections(item))


def kind_of(section: type[BaseModel]) -> str:
    """Return the `kind` by which a variant of a union is named."""
    (kind,) = get_args(section.model_fields["kind"].annotation)
    return str(kind)


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the names a key can hold where only some are valid, else nothing."""
    return tuple(str(value) for member in members(annotation) if get_origin(member) is Literal for value in get_args(member))


def one_of(names: Iterable[str]) -> str:
    """Join names as `a, b or c`."""
    listed = list(names)
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} or {listed[-1]}"


def describe_field(field: FieldInfo) -> str:
    """Return in words which values a field takes, such as `integer >= 1, or null`."""
    return describe(field.annotation, constraints=field.metadata)


def describe(annotation: Any, *, constraints: Iterable[Any] = ()) -> str:
    """Return in words which values an annotation takes under its constraints (bounds, pattern)."""
    kinds = sections(annotation)
    if len(kinds) > 1:
        parts = [f"section of kind {one_of(kind_of(section) for section in kinds)}"]
    else:
        found = [member for member in members(annotation) if member is not type(None) and get_origin(member) is not Literal]
        named = choices(annotation)
        parts = [*([one_of(named)] if named else []), *(_describe_member(member, constraints) for member in found)]
    text = " or ".join(parts)
    return f"{text}, or null" if is_nullable(annotation) else text


def _describe_member(member: Any, constraints: Iterable[Any]) -> str:
    origin, arguments = get_origin(member), get_args(member)
    if origin is tuple:
        if len(sections(arguments[0])) > 1:
            return f"list of {describe(arguments[0]).replace('section', 'sections', 1)}"
        item, constraints = _item(arguments[0])
        words = describe(item, constraints=constraints)
        head = next((plural for plural in _PLURALS if words.split(" ")[0] == plural), None)
        words = _PLURALS[head] + words[len(head) :] if head else words
        return f"list of {words}" if arguments[-1] is Ellipsis else f"list of {len(arguments)} {words}"
    if origin is dict:
        inner = sections(arguments[1])
        return f"mapping of sections, with {_own_keys(arguments[0])}" if inner else "mapping with keys of your own"
    if isinstance(member, type) and issubclass(member, BaseModel):
        return "section"
    if member is bool:
        return "true or false"
    word = {str: "string", int: "integer", float: "number"}[member]
    return " ".join([word, *filter(None, [_bounds(constraints)])])


def _own_keys(annotation: Any) -> str:
    _, constraints = _item(annotation)
    return " ".join(["keys of your own", *filter(None, [_bounds(constraints)])])


def _item(annotation: Any) -> tuple[Any, list[Any]]:
    """Split `Annotated[int, Field(ge=1)]`, an item of a list, into its type and constraints."""
    if get_origin(annotation) is not Annotated:
        return annotation, []
    item, *metadata = get_args(annotation)
    return item, [constraint for entry in metadata for constraint in getattr(entry, "metadata", [entry])]


def _bounds(constraints: Iterable[Any]) -> str:
    found = []
    for constraint in constraints:
        for name, symbol in _BOUNDS.items():
            if hasattr(constraint, name):
                found.append(f"{symbol} {_number(getattr(constraint, name))}")
        if (pattern := getattr(constraint, "pattern", None)) is not None:
            found.append(f"matching {pattern}")
    return " and ".join(found)


def _number(value: float) -> str:
    """Write a bound; a large power of two is easier to read as one."""
    if isinstance(value, int) and value >= 2**20 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return str(value)
