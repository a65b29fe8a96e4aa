"""What a run of `decant label` did, in figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.made_with import other_versions
from pipelines.plan import LabelPlan
from pipelines.retry import num_cured_rows
from pipelines.run_times import RunTimes
from storage.cache import Cache
from storage.label_set import Manifest


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What a run did. A row is a view of a sample: of a picture, or of a token sequence.

    Attributes:
        label_set: id of the committed label set.
        num_computed_rows: rows computed by this run; the others were there, or came in the meantime.
        num_passed_rows: rows that were missing when the run began, and committed when their turn came: by another run at the same
            time, or by a worker of this one that was started anew.
        num_retried_rows: those of them that were dead letters before.
        num_cured_rows: those of these that have a label now.
        bytes_per_row: bytes of parts, over rows.
        num_positions: tokens that have values, where rows are texts with values of tokens; 0 elsewhere.
        bytes_per_position: bytes of parts, over these; None where there are none.
        mass_kept: mean probability mass of kept classes; None of vectors.
        agreement: share of labelled rows whose most probable class is the hard label, or the text's own token; None without any.
        codec_kl_mean: mean KL of the exact selection to what is stored, nats; None of vectors.
        relative_error: root of the mean squared error of stored vectors, over that of the vectors; None of soft labels.
        seconds: wall time of the pipeline, start-up included.
        rows_per_second: rows computed over the time from the first unit's start to the last one's end; start-up left out.
        teacher_rows_per_second: rows computed over seconds inside the teacher, summed over workers.
        provenance_differences: versions that made the labels and are others here; see `other_versions`.
    """

    name: str
    label_set: str
    target: str
    num_units: int
    num_samples: int
    num_rows: int
    num_computed_rows: int
    num_passed_rows: int
    num_retried_rows: int
    num_cured_rows: int
    num_dead_letters: int
    parts_bytes: int
    bytes_per_row: float
    num_positions: int
    bytes_per_position: float | None
    mass_kept: float | None
    agreement: float | None
    codec_kl_mean: float | None
    codec_kl_max: float | None
    relative_error: float | None
    seconds: float
    rows_per_second: float | None
    teacher_rows_per_second: float | None
    provenance_differences: list[dict[str, Any]]


def make_report(cache: Cache, *, name: str, plan: LabelPlan, manifest: Manifest, seconds: float, times: RunTimes) -> LabelReport:
    """Return the report of a run.

    Args:
        name: that points at the label set now; its manifest says which one did first.
        times: of the units that were computed for this plan.
    """
    statistics = manifest.statistics
    of_labels = plan.request.target.kind == "soft_labels"
    values = max(statistics.num_value_rows, 1)
    # Targets may lack different rows of one request; a run tells only how many of the request it passed over.
    num_passed_rows = times.num_passed_rows if plan.of_text else min(times.num_passed_rows, plan.num_missing_rows)
    agreement = statistics.num_agreeing_rows / statistics.num_labelled_rows if statistics.num_labelled_rows else None
    return LabelReport(
        name=name,
        label_set=manifest.id,
        target=plan.request.target.kind,
        num_units=manifest.num_units,
        num_samples=manifest.num_samples,
        num_rows=manifest.num_rows,
        # How many sequences texts have shows when they are labelled.
        num_computed_rows=times.num_rows if plan.of_text else plan.num_missing_rows - num_passed_rows,
        num_passed_rows=num_passed_rows,
        num_retried_rows=sum(task.num_dead_rows for task in plan.tasks.retried),
        num_cured_rows=num_cured_rows(cache, plan.tasks.retried, of_text=plan.of_text),
        num_dead_letters=manifest.num_dead_letters,
        parts_bytes=manifest.parts_bytes,
        bytes_per_row=manifest.parts_bytes / max(statistics.num_rows, 1),
        num_positions=statistics.num_positions,
        bytes_per_position=manifest.parts_bytes / statistics.num_positions if statistics.num_positions else None,
        mass_kept=statistics.mass_kept_sum / values if of_labels else None,
        agreement=agreement,
        codec_kl_mean=statistics.codec_kl_sum / values if of_labels else None,
        codec_kl_max=statistics.codec_kl_max if of_labels else None,
        relative_error=None if of_labels else statistics.relative_error,
        seconds=seconds,
        rows_per_second=times.num_rows / (times.last - times.first) if times.num_rows else None,
        teacher_rows_per_second=times.num_rows / times.teacher_seconds if times.teacher_seconds else None,
        provenance_differences=other_versions(manifest),
    )
