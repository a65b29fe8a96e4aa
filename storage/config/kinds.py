"""Unions of sections of which one kind is meant where none is given."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import Discriminator
from pydantic.fields import FieldInfo


def kind_or(default: str) -> Discriminator:
    """Return what tells the variants of a union apart by their `kind`; each variant needs a `pydantic.Tag` of its kind.

    A function rather than a validator that fills the key in: behind one of those, JSON data is no longer read as JSON, and
    strict models refuse its lists.
    """

    def find(value: Any) -> Any:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)

    return Discriminator(find)


def kind_meant(field: FieldInfo) -> str | None:
    """Return the kind that is meant where a section at a key, or at an entry of it, names none; None where it must."""
    waiting = [field.annotation, *field.metadata]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Discriminator) and callable(found.discriminator):
            return str(found.discriminator({}))
        waiting += get_args(found)
    return None
