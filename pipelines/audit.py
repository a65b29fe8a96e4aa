"""`decant audit`: run the teacher again on some stored rows and compare."""

from __future__ import annotations

from typing import Any

import torch

from pipelines.audit_pictures import PictureAuditor
from pipelines.audit_report import describe_audit
from pipelines.audit_sample import stored_rows
from pipelines.audit_sample_report import describe_samples
from pipelines.audit_teacher import check_teacher
from pipelines.label_unit import provenance
from pipelines.request import label_set_names
from pipelines.survey import Survey, config_of_each_target, survey_run
from pipelines.teachers.base import Teacher
from pipelines.text.audit import audit_texts
from pipelines.transforms import shared_teacher
from storage.cache import Cache
from storage.config import ExperimentConfig
from storage.errors import CacheError, ConfigError, MismatchError
from storage.label_set import LabelSet
from storage.specs import MaskedTokensView, SoftLabelsSpec, TokensView
from storage.upkeep.reading import hold_label_set


def audit(
    config: ExperimentConfig,
    *,
    label_set: str | None = None,
    num_rows: int = 64,
    threshold: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Return the figures of an audit, "problems" that are worth an exit status of 1, and a readable form under "text".

    Args:
        label_set: name or id; None: the one that the config's name points at, of several targets that of the first.
        num_rows: rows that are looked at.
        threshold: largest total variation of soft labels, or distance of vectors, that passes; None: by precision and codec.
        seed: another one chooses other rows.

    Raises:
        MismatchError: teacher or source are not those of the label set; every field that differs, with both values. Or its
            values are known to be wrong.
        CacheError: the label set cannot be read.
        TeacherError: the teacher cannot be loaded or run.
    """
    if config.cache is None:
        raise ConfigError("cache: is needed to audit")
    if num_rows < 1 or (threshold is not None and not 0 <= threshold <= 1):
        raise ConfigError(f"an audit of {num_rows} rows with threshold {threshold}: give at least 1 row, a threshold in [0, 1]")
    opened = LabelSet.open(Cache.at(config.cache), name_or_id=label_set or next(iter(label_set_names(config).values())))
    opened.check_values()
    if config.generation.torch_threads is not None:
        torch.set_num_threads(config.generation.torch_threads)
    of_text = isinstance(opened.manifest.request.view, TokensView | MaskedTokensView)
    with hold_label_set(opened):
        return (audit_texts if of_text else _audit_pictures)(
            config, opened, num_rows=num_rows, threshold=threshold, seed=seed, progress=progress
        )


def _audit_pictures(
    config: ExperimentConfig, opened: LabelSet, *, num_rows: int, threshold: float | None, seed: int, progress: bool
) -> dict[str, Any]:
    manifest = opened.manifest
    manifest.request.rendered_view()
    # Of several targets any will do: teacher and source are the same.
    survey = survey_run(next(iter(config_of_each_target(config).values())), progress=progress)
    check_teacher(opened, made_now=survey.request.teacher.to_json())
    _check_source(opened, survey)
    teacher = shared_teacher(survey.teacher_config)
    assert isinstance(teacher, Teacher)
    auditor = PictureAuditor(survey=survey, label_set=opened, teacher=teacher)
    rows = stored_rows(opened, num_rows=num_rows, seed=seed)
    total = min(num_rows, manifest.num_rows)
    if isinstance(manifest.request.target, SoftLabelsSpec):
        labels = list(auditor.audit_labels(rows, total=total, progress=progress))
        return describe_audit(
            opened, labels, threshold=_threshold(opened, auditor.thresholds, asked=threshold), seed=seed, now=provenance(teacher)
        )
    vectors = list(auditor.audit_vectors(rows, total=total, progress=progress))
    return describe_samples(
        opened,
        vectors,
        threshold=_threshold(opened, auditor.thresholds, asked=threshold),
        seed=seed,
        now=provenance(teacher),
        what="views of pictures",
    )


def _threshold(label_set: LabelSet, defaults: list[float], *, asked: float | None) -> float:
    """Return the threshold of an audit that met rows with some default ones.

    Raises:
        CacheError: it met none.
    """
    if not defaults:
        manifest = label_set.manifest
        raise CacheError(f"label set {manifest.name!r} ({manifest.id}) holds no rows: there is nothing to audit")
    return max(defaults) if asked is None else asked


def _check_source(label_set: LabelSet, survey: Survey) -> None:
    digests = {unit.unit.name: unit.digest for unit in survey.units}
    names, made = (label_set.parts.column(name).to_pylist() for name in ("unit_name", "unit_digest"))
    differing: dict[str, str] = {}
    for name, digest in zip(names, made, strict=True):
        if digests.get(name) != digest:
            now = f"is {digests[name][:16]} now" if name in digests else "is gone"
            differing[name] = f"  unit {name!r}: labelled was content {digest[:16]}, it {now}"
    if differing:
        shown = "\n".join(list(differing.values())[:5])
        more = f"\n  ... and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise MismatchError(
            f"the source no longer holds what label set {label_set.manifest.name!r} ({label_set.manifest.id}) was made of:\n"
            f"{shown}{more}\nRestore the source, or run decant label and audit what it makes"
        )
