"""Unions of sections of which one kind is meant where none is given."""

from __future__ import annotations

from typing import Any

from pydantic import Discriminator


def kind_or(default: str) -> Discriminator:
    """Return what tells the variants of a union apart by their `kind`; each variant needs a `pydantic.Tag` of its kind.

    A function rather than a validator that fills the key in: behind one of those, JSON data is no longer read as JSON, and
    strict models refuse its lists.
    """

    def find(value: Any) -> Any:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)

    return Discriminator(find)
