"""Plans and reports in words."""

from __future__ import annotations

import json
from typing import Any

from pipelines.label import LabelReport, PlannedRun
from storage.specs import CompactCodec, SoftLabelsSpec, TeacherSpec


def describe_plan(run: PlannedRun) -> dict[str, Any]:
    """Return the figures of a plan, and a readable form under "text"."""
    plan = run.plan
    computed = {task.part for task in plan.tasks}
    reused_rows = plan.num_rows - plan.num_missing_rows
    own = plan.request.fingerprint()
    lent = [used.part for used in plan.parts if used.part.request != own]
    known = {used.unit_name for used in plan.parts if used.part not in computed}
    new_units = {used.unit_name for used in plan.parts} - known
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
        "num_reused_parts": sum(used.part not in computed for used in plan.parts),
        "num_computed_parts": len(plan.tasks),
        "num_new_units": len(new_units),
        "teacher_loaded": run.teacher_loaded,
        "lenders": {
            fingerprint: run.cache.request(fingerprint).target.to_json() for fingerprint in {part.request for part in lent}
        },
        "not_lending": dict(plan.not_lending),
    }
    teacher, view, target = plan.request.teacher, plan.request.view, plan.request.target
    assert isinstance(teacher, TeacherSpec)
    figures["text"] = "\n".join(
        [
            f"{run.config.name}: {plan.num_samples:,} samples in {plan.num_units:,} units, {plan.num_views} views each",
            f"  teacher   {teacher.architecture}, {teacher.num_classes:,} classes, {teacher.precision}",
            f"            weights {teacher.weights_sha256}",
            f"  views     {view.kind} {view.size[0]}x{view.size[1]}",
            f"  target    {describe_target(target)} of {target.num_classes:,} classes",
            "",
            f"{'':10}{'rows':>14}{'parts':>8}  why",
            *_reasons(figures, num_same=len(plan.parts) - len(plan.tasks) - len(lent), num_lent=len(lent)),
        ]
    )
    return figures


def describe_target(target: SoftLabelsSpec) -> str:
    """Return what a target keeps, in a few words."""
    levels = f" at {target.codec.levels} levels" if isinstance(target.codec, CompactCodec) else ""
    return f"{f'top {target.k}' if target.k is not None else 'quality level'}, {target.codec.kind} codec{levels}"


def _reasons(figures: dict[str, Any], *, num_same: int, num_lent: int) -> list[str]:
    """Return a table's rows: what is reused, what is computed, and why."""
    lines = []
    same_rows = figures["num_reused_rows"] - figures["num_lent_rows"]
    if same_rows:
        lines.append(f"  reused  {same_rows:>14,}{num_same:>8,}  the same teacher, views, target and pictures")
    if figures["num_lent_rows"]:
        wider = "; ".join(
            describe_target(SoftLabelsSpec.model_validate_json(json.dumps(one))) for one in figures["lenders"].values()
        )
        lines.append(f"  reused  {figures['num_lent_rows']:>14,}{num_lent:>8,}  from wider labels of them: {wider}")
    if figures["num_computed_rows"]:
        new = figures["num_new_units"]
        what = [f"{new:,} of {figures['num_units']:,} units have no such labels yet"] if new else []
        what += (
            [] if new == figures["num_units"] else ["more views, or damaged parts, of units that have some"] if not new else []
        )
        lines.append(f"  compute {figures['num_computed_rows']:>14,}{figures['num_computed_parts']:>8,}  {'; '.join(what)}")
    lines += [
        f"  no use  {'':14}{'':8}  labels {fingerprint[:8]}: {reason}" for fingerprint, reason in figures["not_lending"].items()
    ]
    return lines


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
    if report.num_retried_rows:
        lines.append(f"  tried again      {report.num_retried_rows:,} rows, {report.num_cured_rows:,} have a label now")
    lines.append(f"  bytes a row      {report.bytes_per_row:.1f} ({report.parts_bytes:,} bytes of parts)")
    lines.append(f"  mass kept        {report.mass_kept:.4f}")
    lines.append(f"  codec KL         {report.codec_kl_mean:.2e} mean, {report.codec_kl_max:.2e} largest (nats)")
    if report.rows_per_second is not None and report.teacher_rows_per_second is not None:
        lines.append(
            f"  images/s         {report.rows_per_second:,.1f} once started, {report.teacher_rows_per_second:,.1f} in the teacher"
        )
    if report.agreement is not None:
        lines.append(f"  agreement        {report.agreement:.4f} with the hard labels")
    lines.append(f"  label set        {report.label_set}, or {report.name!r}")
    lines.append(f"next: decant cache show {cache} {report.name}")
    return "\n".join(lines)
