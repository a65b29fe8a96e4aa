"""Rows of a wider target as a narrower one asks for them: fewer classes, layers or vectors of those that are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from storage.codecs.values import TargetValues
from storage.features import FeatureRows
from storage.soft_labels import SoftLabels
from storage.specs import CompactCodec, DenseCodec, ExactCodec, SoftLabelsSpec, TargetSpec


def why_not_narrower(stored: TargetSpec, *, asked: TargetSpec) -> str | None:
    """Return why rows of `stored` cannot serve `asked`; None where they can.

    Soft labels can where they hold every class that would have been kept, at least as exactly: the exact codec serves both codecs
    of ranked classes, the compact one itself at no more levels, and all classes any number of them. Drawn classes serve only
    themselves. Vectors can where they are of all layers asked for, as exactly or as float16 for int8, and equal in all else.
    """
    if isinstance(stored, SoftLabelsSpec) and isinstance(asked, SoftLabelsSpec):
        return _why_not_fewer_classes(stored, asked=asked)
    if stored.kind != asked.kind:
        return f"target.kind is {stored.kind}, not {asked.kind}"
    mine, theirs = stored.to_json(), asked.to_json()
    # What is not said counts as well: of either.
    for name in mine | theirs:
        value: Any = theirs.get(name)
        held: Any = mine.get(name)
        if name in ("layers", "vectors"):
            lacking = set(value) - set(held)
            if lacking:
                return f"target.{name} lacks {', '.join(map(str, sorted(lacking)))}"
            continue
        # Hidden states are what they are, with their head or without.
        needed = not (name == "head_sha256" and value is None) and not (name == "codec" and _is_finer(held, than=value))
        if needed and value != held:
            return f"target.{name} is {held!r}, not {value!r}"
    if theirs.get("head_sha256") is not None and mine["layers"][-1] != theirs["layers"][-1]:
        return f"its head reads layer {mine['layers'][-1]}, not {theirs['layers'][-1]}"
    return None


def _is_finer(stored: dict[str, Any], *, than: dict[str, Any]) -> bool:
    return (stored["kind"], than["kind"]) == ("float16", "int8")


def _why_not_fewer_classes(stored: SoftLabelsSpec, *, asked: SoftLabelsSpec) -> str | None:
    for name in ("num_classes", "generation_temperature", "positions"):
        if getattr(stored, name) != getattr(asked, name):
            return f"target.{name} is {getattr(stored, name)!r}, not {getattr(asked, name)!r}"
    if isinstance(stored.codec, DenseCodec) and isinstance(asked.codec, ExactCodec | CompactCodec):
        return None
    if not isinstance(stored.codec, ExactCodec | CompactCodec) or not isinstance(asked.codec, ExactCodec | CompactCodec):
        differs = stored.codec != asked.codec
        return (
            f"target.codec is {stored.codec.to_json()}, which serves {asked.codec.kind} only if it is the same"
            if differs
            else None
        )
    if isinstance(stored.codec, CompactCodec):
        if not isinstance(asked.codec, CompactCodec):
            return "its compact codec has rounded the probabilities that the exact one keeps"
        if stored.codec.levels < asked.codec.levels:
            return f"target.codec.levels is {stored.codec.levels}, fewer than {asked.codec.levels}"
    if stored.k is None:
        # A row holds all that reaches half a level, up to the cap: the k most probable of them, unless k is above the cap.
        if asked.k is not None and asked.k > stored.max_entries:
            return f"it keeps at most {stored.max_entries} classes a row, fewer than k {asked.k}"
        return None
    if asked.k is None:
        return f"it keeps the top {stored.k} classes, not every one above a level"
    if stored.k < asked.k:
        return f"target.k is {stored.k}, less than {asked.k}"
    return None


def breadth(target: TargetSpec) -> int:
    """Return how many numbers a row may hold."""
    return target.max_entries if isinstance(target, SoftLabelsSpec) else sum(target.tensors.values())


def narrow_values(values: TargetValues, *, stored: TargetSpec, asked: TargetSpec) -> TargetValues:
    """Return rows of any target as a narrower one has them; not copied, where that is what they are.

    Args:
        stored: what the rows hold; `why_not_narrower` finds nothing against it.
    """
    if stored == asked:
        return values
    if isinstance(asked, SoftLabelsSpec):
        assert isinstance(values, SoftLabels)
        return narrow(values, asked=asked)
    assert isinstance(values, FeatureRows)
    return FeatureRows(tensors={name: values.tensors[name] for name in asked.tensors})


def narrow(rows: SoftLabels, *, asked: SoftLabelsSpec) -> SoftLabels:
    """Return rows with no more classes than a target asks for; the mass of all others joins the rest.

    Kept are the most probable classes, of equal ones those that come first; their order stays. With a quality level, what does
    not reach half of one is left out too.
    """
    kept = rows.probs > 0
    if asked.k is None:
        assert isinstance(asked.codec, CompactCodec)
        kept &= rows.probs >= np.float32((0.5 / asked.codec.levels) ** 2)
    if rows.probs.shape[1] > asked.max_entries:
        kept &= _most_probable(rows.probs, num=asked.max_entries)
    counts = kept.sum(axis=1)
    width = int(counts.max(initial=0))
    if width == rows.probs.shape[1] and counts.min(initial=width) == width:
        return rows
    # Kept entries first, in the order they had.
    used = np.arange(width) < counts[:, None]
    class_ids, probs = np.zeros(used.shape, dtype=rows.class_ids.dtype), np.zeros(used.shape, dtype=np.float32)
    class_ids[used], probs[used] = rows.class_ids[kept], rows.probs[kept]
    return SoftLabels(
        class_ids=class_ids,
        probs=probs,
        rest=rows.rest + np.where(kept, np.float32(0), rows.probs).sum(axis=1, dtype=np.float32),
        num_classes=rows.num_classes,
    )


def _most_probable(probs: npt.NDArray[np.float32], *, num: int) -> npt.NDArray[np.bool_]:
    """Return bool [rows, entries], the largest of each row; of equal ones those that come first."""
    # Not sorted: a dense row of a vocabulary is long.
    least = np.partition(probs, -num, axis=1)[:, -num, None]
    above, equal = probs > least, probs == least
    free = num - above.sum(axis=1, keepdims=True)
    found: npt.NDArray[np.bool_] = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= free))
    return found
