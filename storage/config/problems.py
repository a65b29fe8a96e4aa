"""Say what is wrong with a config: dotted path, value, what is allowed, nearest name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from storage.config.schema import choices, describe_field, item_sections, kind_of, one_of, sections
from storage.naming import did_you_mean, nearest

Path = tuple[str | int, ...]
"""Keys and list positions from the top of a config."""

_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: the key it is about; empty for the config as a whole.
        text: the line that is shown, with the key, its value and what is allowed.
    """

    path: Path
    text: str


def dotted(path: Path) -> str:
    """Return a path as a person writes it: `source.path`."""
    return ".".join(str(key) for key in path)


def find_non_json(value: Any, *, path: Path = ()) -> Iterator[Problem]:
    """Yield a problem for each thing JSON cannot carry: keys that are no strings, infinities and NaN, objects."""
    where = f"{dotted(path)}: " if path else ""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str):
                yield from find_non_json(item, path=(*path, key))
            else:
                yield Problem(path=path, text=f"{where}key {key!r} is not a string: put it in quotes")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from find_non_json(item, path=(*path, position))
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(path=path, text=f"{where}{value} is not a finite number")
    elif value is not None and not isinstance(value, str | bool | int | float):
        kind = type(value).__name__
        yield Problem(path=path, text=f"{where}{kind} is refused: only strings, numbers, true, false, null, lists and mappings")


def explain(error: ValidationError, *, root: type[BaseModel], data: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong, each key once.

    Args:
        error: what validating `data` as `root` raised.
        root: the model at the top.
        data: JSON data as it was validated.
    """
    found = [_explain_one(details, root=root, data=data) for details in error.errors(include_url=False)]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    path: Path
    section: type[BaseModel]
    variants: tuple[type[BaseModel], ...]
    field: FieldInfo | None
    inside_value: bool


def _locate(location: Path, *, root: type[BaseModel]) -> _Place:
    """Follow pydantic's location from the top, leaving out union tags and what lies inside a plain value."""
    candidates: tuple[type[BaseModel], ...] = (root,)
    place = _Place(path=(), section=root, variants=(root,), field=None, inside_value=False)
    variants = candidates
    items: tuple[type[BaseModel], ...] = ()
    for element in location:
        if items:
            # An entry of a list or mapping of sections: its place or its key, then the section.
            place = replace(place, path=(*place.path, element))
            candidates, variants, items = items, items, ()
            continue
        if not candidates:
            return _Place(path=place.path, section=place.section, variants=variants, field=place.field, inside_value=True)
        if len(candidates) > 1:
            candidates = tuple(candidate for candidate in candidates if kind_of(candidate) == element)
            continue
        section = candidates[0]
        field = section.model_fields.get(str(element))
        place = _Place(path=(*place.path, element), section=section, variants=variants, field=field, inside_value=False)
        candidates = sections(field.annotation) if field is not None else ()
        items = item_sections(field.annotation) if field is not None and not candidates else ()
        variants = candidates or variants
    return place


def _explain_one(details: ErrorDetails, *, root: type[BaseModel], data: Mapping[str, Any]) -> Problem:
    place = _locate(details["loc"], root=root)
    path, key = place.path, dotted(place.path)
    match details["type"]:
        case "value_error":
            text = str(details["ctx"]["error"])
            return Problem(path=path, text=f"{key}: {text}" if path else text)
        case "missing" if not place.inside_value and place.field is not None:
            return Problem(path=path, text=f"{key}: missing; expected {_expected(place.field)}. {place.field.description}")
        case "union_tag_not_found" if place.field is not None:
            kinds = [kind_of(variant) for variant in _variants(place.field)]
            return Problem(path=(*path, "kind"), text=f"{key}.kind: missing; expected {one_of(kinds)}")
        case "union_tag_invalid" if place.field is not None:
            kinds, tag = [kind_of(variant) for variant in _variants(place.field)], _lookup(data, path)["kind"]
            return Problem(path=(*path, "kind"), text=f"{key}.kind = {_show(tag)}: expected {one_of(kinds)}{_guess(tag, kinds)}")
        case "extra_forbidden":
            value = _show(_lookup(data, path))
            return Problem(path=path, text=f"{key} = {value}: unknown key.{_where_known(str(path[-1]), place)}")
    value = _lookup(data, path)
    if place.field is None:
        return Problem(path=path, text=details["msg"])
    guess = _guess(value, choices(place.field.annotation))
    return Problem(path=path, text=f"{key} = {_show(value)}: expected {_expected(place.field)}{guess}")


def _variants(field: FieldInfo) -> tuple[type[BaseModel], ...]:
    return sections(field.annotation) or item_sections(field.annotation)


def _where_known(key: str, place: _Place) -> str:
    """Name the other kinds of the section that know the key, or the nearest key of this kind."""
    kinds = [kind_of(variant) for variant in place.variants if variant is not place.section and key in variant.model_fields]
    if kinds:
        return f" It belongs to kind {one_of(kinds)}, not to {kind_of(place.section)}."
    return did_you_mean(key, place.section.model_fields)


def _expected(field: FieldInfo) -> str:
    found = sections(field.annotation)
    if len(found) != 1:
        return describe_field(field)
    return f"{describe_field(field)} with keys {', '.join(found[0].model_fields)}"


def _guess(value: Any, names: Sequence[str]) -> str:
    match = nearest(value, names) if isinstance(value, str) else None
    return f". Did you mean {match!r}?" if match is not None else ""


def _show(value: Any) -> str:
    """Return a value as JSON on one line, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _lookup(data: Any, path: Path) -> Any:
    for key in path:
        data = data[key]
    return data
