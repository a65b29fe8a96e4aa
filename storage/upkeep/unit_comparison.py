"""Which source units two label sets share, by the digest of their content; and in what a unit of the same name differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.checked_reading import read_samples
from storage.errors import CacheError
from storage.hashing import key_hash
from storage.label_set import LabelSet
from storage.samples import SampleTable
from storage.sources import IndexedUnit

SHOWN = 10
"""Entries of a list that are kept; counts are of all."""
LOOKED_INTO = 3
"""Changed units whose samples are read, to say in what they differ."""


def units_of(parts: pa.Table) -> pa.Table:
    """Return one row a unit: unit_name, unit_digest, num_samples, in order."""
    table = parts.select(["unit_name", "unit_digest", "num_samples"]).append_column("row", pa.array(range(parts.num_rows)))
    grouped = table.group_by(["unit_name", "unit_digest"], use_threads=False).aggregate([("num_samples", "max"), ("row", "min")])
    return grouped.sort_by("row_min").rename_columns(
        [name.replace("num_samples_max", "num_samples") for name in grouped.column_names]
    )


def units_indexed(units: Sequence[IndexedUnit]) -> pa.Table:
    """Return one row a unit, as `units_of` does."""
    return pa.table(
        {
            "unit_name": pa.array([unit.unit.name for unit in units], type=pa.string()),
            "unit_digest": pa.array([unit.digest for unit in units], type=pa.string()),
            "num_samples": pa.array([unit.num_samples for unit in units], type=pa.int64()),
        }
    )


def compare_units(one: pa.Table, other: pa.Table) -> dict[str, Any]:
    """Return what became of units, by the digest of their content; names only say what to call it."""

    def keyed(table: pa.Table) -> pa.Table:
        key = pc.binary_join_element_wise(table.column("unit_digest"), table.column("unit_name"), "/")
        return table.append_column("key", key)

    def without(table: pa.Table, column: str, others: pa.Table) -> tuple[pa.Table, pa.Table]:
        found = pc.is_in(table.column(column), value_set=others.column(column).combine_chunks())
        return table.filter(found), table.filter(pc.invert(found))

    one, other = keyed(one), keyed(other)
    same, left = without(one, "key", other)
    same_there, left_there = without(other, "key", one)
    moved, left = without(left, "unit_digest", left_there)
    moved_there, left_there = without(left_there, "unit_digest", moved)
    changed, only_one = without(left, "unit_name", left_there)
    changed_there, only_other = without(left_there, "unit_name", changed)

    def looked_up(table: pa.Table, others: pa.Table, *, by: str, value: str) -> list[tuple[dict[str, Any], Any]]:
        """Return the first rows of a table, each with a value of the row in others that has the same `by`."""
        shown = table.slice(0, SHOWN)
        matching = others.filter(pc.is_in(others.column(by), value_set=shown.column(by).combine_chunks()))
        values = dict(zip(matching.column(by).to_pylist(), matching.column(value).to_pylist(), strict=True))
        return [(row, values[row[by]]) for row in shown.to_pylist()]

    def count(table: pa.Table) -> dict[str, Any]:
        return {"num_units": table.num_rows, "num_samples": pc.sum(table.column("num_samples")).as_py() or 0}

    def names(table: pa.Table) -> list[str]:
        found: list[str] = table.column("unit_name").slice(0, SHOWN).to_pylist()
        return found

    return {
        "counts": {
            "same": count(same),
            "moved": count(moved),
            "changed": count(changed),
            "only_a": count(only_one),
            "only_b": count(only_other),
        },
        "same_order": bool(same.column("key").combine_chunks().equals(same_there.column("key").combine_chunks())),
        "moved": [
            {"a": row["unit_name"], "b": name} for row, name in looked_up(moved, moved_there, by="unit_digest", value="unit_name")
        ],
        "changed": [
            {"unit": row["unit_name"], "num_samples_a": row["num_samples"], "num_samples_b": num_there}
            for row, num_there in looked_up(changed, changed_there, by="unit_name", value="num_samples")
        ],
        "only_a": names(only_one),
        "only_b": names(only_other),
    }


def _samples_of(label_set: LabelSet, *, name: str) -> SampleTable:
    """Return keys and labels of a unit.

    Raises:
        CacheError: its part cannot be read.
    """
    index = pc.index(label_set.parts.column("unit_name"), pa.scalar(name)).as_py()
    return read_samples(label_set, part=index)


def why_changed(one: LabelSet, other: LabelSet, *, name: str) -> str:
    """Return in what the content of a unit of the same name differs."""
    try:
        mine, theirs = _samples_of(one, name=name), _samples_of(other, name=name)
    except CacheError as error:
        return f"its samples cannot be compared: {error}"
    here, there = Counter(mine.keys), Counter(theirs.keys)
    gone, came = here - there, there - here
    if gone or came:
        shown = [
            f"{len(keys):,} samples only in {where} ({next(iter(keys))} ...)"
            for keys, where in ((gone, "A"), (came, "B"))
            if keys
        ]
        return ", ".join(shown)
    if mine.keys != theirs.keys:
        return "the same samples in another order"
    num_labels = int((mine.labels != theirs.labels).sum())
    if num_labels:
        return f"the same samples, {num_labels:,} of {len(mine.keys):,} with another hard label"
    return "the same samples and hard labels, but a picture's bytes differ"


def why_other_keys(label_set: LabelSet, *, name: str, hashed: int) -> str:
    """Return in what a unit's content differs from that of an indexed one, of whose keys there is a hash."""
    try:
        keys = _samples_of(label_set, name=name).keys
    except CacheError as error:
        return f"its samples cannot be compared: {error}"
    if key_hash(keys) == hashed:
        return "the same samples in the same order, but hard labels or pictures' bytes differ"
    return "other samples, or another order"
