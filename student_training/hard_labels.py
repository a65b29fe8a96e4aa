"""Hard labels are looked for before they are trained on: without any, the loss is 0 and nothing is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from storage.checked_reading import read_samples
from storage.errors import ConfigError
from storage.label_set import LabelSet
from storage.sources.base import NO_LABEL
from storage.specs import SoftLabelsSpec
from storage.streams.label_stream import LabelStream
from student_training.job import Job


@runtime_checkable
class CountsLabelled(Protocol):
    """A stream that knows the labels of its source."""

    @property
    def num_labelled(self) -> int:
        """Samples with a hard label, of those that are read."""


def require_hard_labels(job: Job) -> None:
    """Check that a training on hard labels has some.

    Raises:
        ConfigError: no sample has one.
        SourceError: the source cannot be listed or read.
        CorruptError: samples of a label set are not what was committed.
    """
    if not job.uses_labels:
        return
    if isinstance(job.stream, CountsLabelled):
        if job.stream.num_labelled == 0:
            key = "training.source" if job.training.source is not None else "source"
            raise ConfigError(
                f"{key} gives no sample a hard label, so the loss would be 0 and nothing would be learned; check its class "
                f"folders and its labelled, label_field or label_column key, or train without hard labels ({_without(job)})"
            )
        return
    label_set = _label_set(job)
    if label_set is not None and not _is_labelled(label_set):
        raise ConfigError(
            f"label set {label_set.manifest.name!r} holds no hard label of any sample, so their part of the loss would be 0; "
            f"train without hard labels ({_without(job)}), or give the source its labels and label it again"
        )


def _label_set(job: Job) -> LabelSet | None:
    """Return a label set of a job; those of one job are of the same samples, so that any of them speaks for all."""
    if isinstance(job.stream, LabelStream):
        return job.stream.label_set
    label_sets: Sequence[LabelSet] = getattr(job, "label_sets", ())
    return label_sets[0] if label_sets else None


def _is_labelled(label_set: LabelSet) -> bool:
    manifest = label_set.manifest
    target = manifest.request.target
    if isinstance(target, SoftLabelsSpec) and target.positions == "view" and manifest.statistics.num_labelled_rows:
        return True
    # Of vectors and of tokens nothing is counted. Where there are labels, the first part has some.
    return any((read_samples(label_set, part=part).labels != NO_LABEL).any() for part in range(len(label_set.parts)))


def _without(job: Job) -> str:
    if job.training.targets.kind == "hard":
        return "training.targets.kind: cached"
    return "training.loss.hard_weight: 0" if job.training.terms is None else "training.terms without hard_label"
