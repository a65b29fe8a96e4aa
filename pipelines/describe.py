"""Plans and reports in words."""

from __future__ import annotations

from typing import Any

from pipelines.label import LabelReport, PlannedRun


def describe_plan(run: PlannedRun) -> dict[str, Any]:
    """Return the figures of a plan, and a readable form under "text"."""
    plan = run.plan
    computed = {task.part for task in plan.tasks}
    reused_rows = plan.num_rows - plan.num_missing_rows
    figures: dict[str, Any] = {
        "name": run.config.name,
        "request": plan.request.fingerprint(),
        "num_units": plan.num_units,
        "num_samples": plan.num_samples,
        "num_views": plan.num_views,
        "num_rows": plan.num_rows,
        "num_reused_rows": reused_rows,
        "num_computed_rows": plan.num_missing_rows,
        "num_reused_parts": sum(used.part not in computed for used in plan.parts),
        "num_computed_parts": len(plan.tasks),
        "teacher_loaded": run.teacher_loaded,
    }
    teacher, view, target = plan.request.teacher, plan.request.view, plan.request.target
    selection = f"top {target.k}" if target.k is not None else "quality level"
    figures["text"] = "\n".join(
        [
            f"{run.config.name}: {plan.num_samples:,} samples in {plan.num_units:,} units, {plan.num_views} views each",
            f"  teacher   {teacher.architecture}, {teacher.num_classes:,} classes, {teacher.precision}",
            f"            weights {teacher.weights_sha256}",
            f"  views     {view.kind} {view.size[0]}x{view.size[1]}",
            f"  target    {selection} of {target.num_classes:,}, codec {target.codec.kind}",
            f"  reused    {reused_rows:,} rows in {figures['num_reused_parts']:,} parts",
            f"  to do     {plan.num_missing_rows:,} rows in {figures['num_computed_parts']:,} parts",
        ]
    )
    return figures


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
