"""Rows of a wider target as a narrower one asks for them: fewer classes, layers or vectors of those that are stored."""

from __future__ import annotations

import numpy as np

from storage.codecs.values import TargetValues
from storage.features import FeatureRows
from storage.soft_labels import SoftLabels
from storage.specs import CompactCodec, ExactCodec, SoftLabelsSpec, TargetSpec


def why_not_narrower(stored: TargetSpec, *, asked: TargetSpec) -> str | None:
    """Return why rows of `stored` cannot serve `asked`; None where they can.

    Soft labels can where they hold every class that would have been kept, at least as exactly: the exact codec serves both codecs
    of ranked classes, the compact one itself at no more levels. Drawn classes serve only themselves. Vectors can where they are
    of all layers asked for, and equal in all else.
    """
    if isinstance(stored, SoftLabelsSpec) and isinstance(asked, SoftLabelsSpec):
        return _why_not_fewer_classes(stored, asked=asked)
    if stored.kind != asked.kind:
        return f"target.kind is {stored.kind}, not {asked.kind}"
    mine, theirs = stored.to_json(), asked.to_json()
    for name, value in theirs.items():
        lacking = set(value) - set(mine[name]) if name in ("layers", "vectors") else set()
        if lacking:
            return f"target.{name} lacks {', '.join(map(str, sorted(lacking)))}"
        # Hidden states are what they are, with their head or without.
        needed = name not in ("layers", "vectors") and not (name == "head_sha256" and value is None)
        if needed and value != mine[name]:
            return f"target.{name} is {mine[name]!r}, not {value!r}"
    if theirs.get("head_sha256") is not None and mine["layers"][-1] != theirs["layers"][-1]:
        return f"its head reads layer {mine['layers'][-1]}, not {theirs['layers'][-1]}"
    return None


def _why_not_fewer_classes(stored: SoftLabelsSpec, *, asked: SoftLabelsSpec) -> str | None:
    for name in ("num_classes", "generation_temperature", "positions"):
        if getattr(stored, name) != getattr(asked, name):
            return f"target.{name} is {getattr(stored, name)!r}, not {getattr(asked, name)!r}"
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
        ranks = np.argsort(-rows.probs, axis=1, kind="stable")
        np.put_along_axis(kept, ranks[:, asked.max_entries :], False, axis=1)
    counts = kept.sum(axis=1)
    width = int(counts.max(initial=0))
    if width == rows.probs.shape[1] and counts.min(initial=width) == width:
        return rows
    # Kept entries first, in the order they had.
    order = np.argsort(~kept, axis=1, kind="stable")[:, :width]
    probs = np.take_along_axis(np.where(kept, rows.probs, np.float32(0)), order, axis=1)
    return SoftLabels(
        class_ids=np.ascontiguousarray(np.take_along_axis(rows.class_ids, order, axis=1)),
        probs=probs,
        rest=rows.rest + np.where(kept, np.float32(0), rows.probs).sum(axis=1, dtype=np.float32),
        num_classes=rows.num_classes,
    )
