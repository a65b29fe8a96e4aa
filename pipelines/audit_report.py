"""What an audit found, in figures and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.label_set import LabelSet

NUM_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditedRow:
    """A stored row beside what the teacher says now.

    Attributes:
        total_variation: between both, in [0, 1]; 1 where nothing can be said now.
        kl: KL(stored || now), nats; None where nothing can be said now.
        stored_top: most probable class as stored, -1: none is kept.
        top_now: the same now; None where nothing can be said.
        digests_agree: whether the rendered views' digests are those stored; None where none is stored nearby.
        problem: why nothing can be said now.
    """

    unit_name: str
    key: str
    position: int
    view: int
    total_variation: float
    kl: float | None
    stored_top: int
    top_now: int | None
    same_top: bool
    digests_agree: bool | None
    problem: str | None


def describe_audit(
    label_set: LabelSet, rows: list[AuditedRow], *, threshold: float, seed: int, now: dict[str, str]
) -> dict[str, Any]:
    """Return the figures of an audit, its problems, and a readable form under "text".

    Args:
        now: versions and device that the audit ran with.
    """
    manifest = label_set.manifest
    apart = np.array([row.total_variation for row in rows])
    kls = np.array([row.kl for row in rows if row.kl is not None] or [0.0])
    failing = [row for row in rows if row.problem or row.total_variation > threshold or row.digests_agree is False]
    worst = sorted(rows, key=lambda row: (row.problem is None, -row.total_variation))[:NUM_SHOWN]
    differences = provenance_differences(manifest.provenance, now=now)
    proven = [row.digests_agree for row in rows if row.digests_agree is not None]
    num_units, num_views = len({row.unit_name for row in rows}), len({row.view for row in rows})
    problems = []
    if failing:
        wrong = [row for row in rows if row.digests_agree is False]
        problems.append(
            f"{len(failing)} of {len(rows)} rows are not what the teacher says of them now (total variation above {threshold:.4g}"
            f"{f', or other pixels: {len(wrong)}' if wrong else ''}): teacher, pictures or labels changed since, or precision "
            "explains it and --threshold should be wider"
        )
    lines = [
        f"label set {manifest.id}, name {manifest.name!r}",
        f"  audited          {len(rows):,} of {manifest.num_rows:,} rows, {num_units:,} units, {num_views:,} views, seed {seed}",
        f"  total variation  {apart.mean():.2e} mean, {apart.max():.2e} largest; {threshold:.4g} passes",
        f"  KL               {kls.mean():.2e} mean, {kls.max():.2e} largest (nats, stored to now)",
        f"  top-1 agreement  {np.mean([row.same_top for row in rows]):.4f}",
        f"  view digests     {sum(proven):,} of {len(proven):,} agree",
    ]
    if apart.max() > 0:
        lines += ["  rows that differ most:", *(f"    {_describe(row)}" for row in worst if row.total_variation > 0)]
    lines += describe_provenance(differences)
    lines += problems or [f"right: no row is further apart than {threshold:.4g}"]
    return {
        "label_set": manifest.id,
        "name": manifest.name,
        "num_rows": len(rows),
        "num_units": num_units,
        "num_views": num_views,
        "seed": seed,
        "threshold": threshold,
        "total_variation_mean": float(apart.mean()),
        "total_variation_max": float(apart.max()),
        "kl_mean": float(kls.mean()),
        "kl_max": float(kls.max()),
        "top1_agreement": float(np.mean([row.same_top for row in rows])),
        "num_view_digests": len(proven),
        "num_wrong_view_digests": len(proven) - sum(proven),
        "num_failing_rows": len(failing),
        "worst": [_row_figures(row) for row in worst],
        "provenance_differences": differences,
        "problems": problems,
        "text": "\n".join(lines),
    }


def provenance_differences(made_by: tuple[dict[str, str], ...], *, now: dict[str, str]) -> list[dict[str, Any]]:
    """Return the versions and devices that made labels and are others now."""
    found = []
    for what in sorted({name for made in (*made_by, now) for name in made}):
        made = sorted({parts.get(what, "none") for parts in made_by})
        if made != [now.get(what, "none")]:
            found.append({"what": what, "parts": made, "now": now.get(what, "none")})
    return found


def describe_provenance(differences: list[dict[str, Any]]) -> list[str]:
    """Return lines about what `provenance_differences` found."""
    if not differences:
        return []
    lines = [f"    {one['what']:<14} {', '.join(one['parts'])}; now {one['now']}" for one in differences]
    return ["  made with, and now (recorded; none of it makes labels invalid):", *lines]


def _describe(row: AuditedRow) -> str:
    where = f"unit {row.unit_name!r}, {row.key!r}, view {row.view}"
    if row.problem:
        return f"{where}: it was labelled, and now {row.problem}"
    digests = "; its pixels are not those that were labelled" if row.digests_agree is False else ""
    return f"{where}: total variation {row.total_variation:.4f}, most probable class {row.stored_top}, now {row.top_now}{digests}"


def _row_figures(row: AuditedRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in AuditedRow.__slots__}
