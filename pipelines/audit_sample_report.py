"""What an audit found of samples of many values (texts, and vectors of pictures), in figures and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.audit_report import NUM_SHOWN, describe_provenance, provenance_differences
from storage.label_set import LabelSet
from storage.specs import SoftLabelsSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditedSample:
    """A stored sequence, or a stored view of a picture, beside what the teacher says of it now.

    Attributes:
        num_rows: its rows of values.
        distance: largest of its rows: total variation of soft labels, relative distance of vectors; 1 where nothing can be said.
        same_top: its rows whose most probable class is the same; None of vectors.
        digests_agree: whether rendered views' digests are those stored; None where none is stored nearby, and of texts.
        problem: why nothing can be said now.
    """

    unit_name: str
    key: str
    view: int
    num_rows: int
    distance: float
    same_top: int | None
    digests_agree: bool | None
    problem: str | None


def describe_samples(
    label_set: LabelSet, found: list[AuditedSample], *, threshold: float, seed: int, now: dict[str, str], what: str
) -> dict[str, Any]:
    """Return the figures of an audit, its problems, and a readable form under "text".

    Args:
        now: versions and device that the audit ran with.
        what: samples are, in the plural.
    """
    manifest = label_set.manifest
    of_labels = isinstance(manifest.request.target, SoftLabelsSpec)
    measure = "total variation" if of_labels else "distance"
    apart = np.array([one.distance for one in found])
    num_values = sum(one.num_rows for one in found)
    failing = [one for one in found if one.problem or one.distance > threshold or one.digests_agree is False]
    worst = sorted(found, key=lambda one: (one.problem is None, -one.distance))[:NUM_SHOWN]
    proven = [one.digests_agree for one in found if one.digests_agree is not None]
    tops = sum(one.same_top or 0 for one in found) / max(num_values, 1) if of_labels else None
    differences = provenance_differences(manifest.provenance, now=now)
    problems = []
    if failing:
        num_wrong = len(proven) - sum(proven)
        problems.append(
            f"{len(failing)} of {len(found)} {what} are not what the teacher says of them now (a row further apart than "
            f"{threshold:.4g}{f', or other pixels: {num_wrong}' if num_wrong else ''}): teacher, {what} or labels changed since, "
            "or precision explains it and --threshold should be wider"
        )
    lines = [
        f"label set {manifest.id}, name {manifest.name!r}",
        f"  audited          {len(found):,} of {manifest.num_rows:,} {what}, {num_values:,} rows of values, seed {seed}",
        f"  {measure:<16} {apart.mean():.2e} mean of the largest of each, {apart.max():.2e} largest; {threshold:.4g} passes",
        *([] if tops is None else [f"  top-1 agreement  {tops:.4f}"]),
        *([f"  view digests     {sum(proven):,} of {len(proven):,} agree"] if proven else []),
    ]
    if apart.max() > 0 or failing:
        lines.append(f"  {what} that differ most:")
        lines += [f"    {_describe(one, measure=measure)}" for one in worst if one.distance > 0 or one in failing]
    lines += describe_provenance(differences)
    lines += problems or [f"right: no row is further apart than {threshold:.4g}"]
    return {
        "label_set": manifest.id,
        "name": manifest.name,
        "num_rows": len(found),
        "num_values": num_values,
        "num_units": len({one.unit_name for one in found}),
        "num_views": len({one.view for one in found}),
        "seed": seed,
        "threshold": threshold,
        "distance_mean": float(apart.mean()),
        "distance_max": float(apart.max()),
        "top1_agreement": tops,
        "num_view_digests": len(proven),
        "num_wrong_view_digests": len(proven) - sum(proven),
        "num_failing_rows": len(failing),
        "worst": [{name: getattr(one, name) for name in AuditedSample.__slots__} for one in worst],
        "provenance": now,
        "provenance_differences": differences,
        "problems": problems,
        "text": "\n".join(lines),
    }


def _describe(one: AuditedSample, *, measure: str) -> str:
    where = f"unit {one.unit_name!r}, {one.key!r}, view {one.view}"
    if one.problem:
        return f"{where}: it was labelled, and now {one.problem}"
    digests = "; its pixels are not those that were labelled" if one.digests_agree is False else ""
    return f"{where}: {measure} {one.distance:.2e}{digests}"
