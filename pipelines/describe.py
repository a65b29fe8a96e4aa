"""Plans and reports in words."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from pipelines.estimate import Estimate
from pipelines.label_report import LabelReport
from pipelines.label_run import SubmittedRun
from pipelines.made_with import other_versions, versions_in_words
from pipelines.planned_run import PlannedRun
from storage.description import target_words, view_words
from storage.specs import ImportedTeacher, TargetSpec
from storage.upkeep.comparison import nearest_request
from storage.upkeep.comparison_words import nearest_in_words

_TARGET: TypeAdapter[TargetSpec] = TypeAdapter(TargetSpec)


def describe_plan(run: PlannedRun, *, estimate: Estimate | None = None) -> dict[str, Any]:
    """Return the figures of a plan, and a readable form under "text".

    Args:
        estimate: what computing costs, where that was measured.
    """
    plan = run.plan
    reused_rows = plan.num_rows - plan.num_missing_rows
    nearest = None
    if plan.tasks:
        nearest = nearest_request(run.cache, request=plan.request, digests=plan.tasks.unit_digests)
    figures: dict[str, Any] = {
        "name": run.config.name,
        "request": plan.request.fingerprint(),
        "num_units": plan.num_units,
        "num_samples": plan.num_samples,
        "num_views": plan.num_views,
        "num_rows": plan.num_rows,
        "num_reused_rows": reused_rows,
        "num_lent_rows": plan.num_lent_rows,
        "num_computed_rows": plan.num_missing_rows,
        "num_reused_parts": len(plan.parts) - len(plan.tasks),
        "num_computed_parts": len(plan.tasks),
        "num_new_units": plan.num_new_units,
        "teacher_loaded": run.teacher_loaded,
        "lenders": {fingerprint: run.cache.request(fingerprint).target.to_json() for fingerprint in sorted(plan.lenders)},
        "not_lending": dict(plan.not_lending),
        "nearest": nearest,
        "estimate": None if estimate is None else asdict(estimate),
        "provenance_differences": [] if plan.standing is None else other_versions(plan.standing),
    }
    teacher, view, target = plan.request.teacher, plan.request.view, plan.request.target
    assert not isinstance(teacher, ImportedTeacher)
    # How many sequences documents become shows when they are labelled.
    samples = "documents" if plan.of_text else "samples"
    figures["text"] = "\n".join(
        [
            f"{run.config.name}: {plan.num_samples:,} {samples} in {plan.num_units:,} units, {plan.num_views} views each",
            f"  teacher   {teacher.architecture}, {teacher.num_classes:,} classes, {teacher.precision}",
            f"            weights {teacher.weights_sha256}",
            f"  views     {view_words(view)}",
            f"  target    {target_words(target)}",
            "",
            f"{'':10}{'documents' if plan.of_text else 'rows':>14}{'parts':>8}  why",
            *_reasons(figures, num_same=len(plan.parts) - len(plan.tasks) - plan.num_lent_parts, num_lent=plan.num_lent_parts),
            *([] if estimate is None else _costs(estimate, of_text=plan.of_text)),
            *_made_with(figures["provenance_differences"], width=10),
        ]
    )
    return figures


def _costs(estimate: Estimate, *, of_text: bool) -> list[str]:
    sample = "document" if of_text else "sample"
    sequences = f" ({estimate.sequences_per_sample:,.2f} sequences)" if of_text else ""
    tokens = f", {estimate.bytes_per_position:,.1f} a token with values" if estimate.bytes_per_position is not None else ""
    measured = f"measured on {estimate.num_measured_samples:,}"
    return [
        "",
        f"  bytes     {estimate.bytes_per_sample:,.1f} a {sample}{sequences}{tokens}, {measured}",
        f"            about {estimate.missing_bytes:,} to compute, {estimate.total_bytes:,} in all",
        f"  teacher   about {estimate.teacher_seconds:,.0f} s on this device",
    ]


def _reasons(figures: dict[str, Any], *, num_same: int, num_lent: int) -> list[str]:
    """Return a table's rows: what is reused, what is computed, and why."""
    lines = []
    same_rows = figures["num_reused_rows"] - figures["num_lent_rows"]
    if same_rows:
        lines.append(f"  reused  {same_rows:>14,}{num_same:>8,}  the same teacher, views, target and samples")
    if figures["num_lent_rows"]:
        wider = "; ".join(target_words(_TARGET.validate_json(json.dumps(one))) for one in figures["lenders"].values())
        lines.append(f"  reused  {figures['num_lent_rows']:>14,}{num_lent:>8,}  from wider or finer labels of them: {wider}")
    if figures["num_computed_rows"]:
        new = figures["num_new_units"]
        what = [f"{new:,} of {figures['num_units']:,} units have no such labels yet"] if new else []
        what += (
            [] if new == figures["num_units"] else ["more views, or damaged parts, of units that have some"] if not new else []
        )
        lines.append(f"  compute {figures['num_computed_rows']:>14,}{figures['num_computed_parts']:>8,}  {'; '.join(what)}")
    if figures["nearest"] is not None:
        lines.append(f"  {'':30}of these {nearest_in_words(figures['nearest'])}")
    lines += [
        f"  no use  {'':14}{'':8}  labels {fingerprint[:8]}: {reason}" for fingerprint, reason in figures["not_lending"].items()
    ]
    return lines


def _made_with(differences: list[dict[str, Any]], *, width: int) -> list[str]:
    return [f"  {'made with':<{width}}{versions_in_words(differences)}"] if differences else []


def describe_report(report: LabelReport, *, cache: str) -> str:
    """Return what a run did, readable."""
    lines = []
    if report.num_computed_rows == 0:
        lines.append(f"{report.name}: nothing to do, all {report.num_rows:,} rows are in the cache; the teacher was not run")
    else:
        lines.append(
            f"{report.name}: {report.num_computed_rows:,} of {report.num_rows:,} rows labelled in {report.seconds:.1f} s"
        )
    lines.append(f"  dead letters     {report.num_dead_letters:,}")
    if report.num_passed_rows:
        lines.append(
            f"  passed over      {report.num_passed_rows:,} rows, committed in the meantime by another run or before a restart"
        )
    if report.num_retried_rows:
        lines.append(f"  tried again      {report.num_retried_rows:,} rows, {report.num_cured_rows:,} have a label now")
    lines.append(f"  bytes a row      {report.bytes_per_row:.1f} ({report.parts_bytes:,} bytes of parts)")
    if report.bytes_per_position is not None:
        lines.append(f"  bytes a token    {report.bytes_per_position:.1f} ({report.num_positions:,} tokens with values)")
    if report.mass_kept is not None and report.codec_kl_mean is not None and report.codec_kl_max is not None:
        lines.append(f"  mass kept        {report.mass_kept:.4f}")
        lines.append(f"  codec KL         {report.codec_kl_mean:.2e} mean, {report.codec_kl_max:.2e} largest (nats)")
    if report.relative_error is not None:
        lines.append(f"  error            {report.relative_error:.2%} of the vectors, root mean square")
    if report.rows_per_second is not None and report.teacher_rows_per_second is not None:
        lines.append(
            f"  rows/s           {report.rows_per_second:,.1f} once started, {report.teacher_rows_per_second:,.1f} in the teacher"
        )
    if report.agreement is not None:
        right = "hard labels" if report.num_positions == 0 else "text's own tokens"
        lines.append(f"  agreement        {report.agreement:.4f} with the {right}")
    lines += _made_with(report.provenance_differences, width=17)
    lines.append(f"  label set        {report.label_set}, or {report.name!r}")
    lines.append(f"next: {shlex.join(['decant', 'cache', 'show', cache, report.name])}")
    return "\n".join(lines)


def describe_submitted(run: SubmittedRun) -> str:
    """Return what somebody must know of a run that goes on without the command, readable."""
    lines = [f"run {run.run} was submitted to {run.runner}: {run.num_parts:,} parts, {run.num_rows:,} rows"]
    lines += [f"  job              {job}" for job in run.jobs]
    lines.append(f"next: {run.watch}")
    if run.next is not None:
        lines.append(f"  and when it has ended, to commit the label set: {run.next}")
    return "\n".join(lines)
