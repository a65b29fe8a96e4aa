"""A training of pictures on several targets, checked and held together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.label_set import LabelSet
from storage.specs import SoftLabelsSpec, TargetSpec, ViewSpec
from storage.streams.base import RowStream, StreamRows
from student_training.job import Job


@dataclass(frozen=True, kw_only=True)
class PictureTermsJob(Job):
    """A training of pictures whose loss is a sum of terms.

    Attributes:
        view: the views, as the teacher saw them.
        num_classes: of the labels or the source.
        targets: what terms read, by its name in the experiment; empty with hard labels.
        num_tokens: tokens of every picture, of targets that hold all of them.
        mean_class_probs: of targets that are soft labels, float [classes], for the rest policy `mean`.
        label_sets: what is read of the cache.
        note: what a person should know of the views; None: nothing.
    """

    stream: RowStream[StreamRows]
    view: ViewSpec
    num_classes: int
    targets: Mapping[str, TargetSpec] = field(default_factory=dict)
    num_tokens: Mapping[str, int] = field(default_factory=dict)
    mean_class_probs: Mapping[str, npt.NDArray[np.floating[Any]]] = field(default_factory=dict)
    label_sets: Sequence[LabelSet] = ()
    note: str | None = None

    @property
    def uses_labels(self) -> bool:
        """Whether hard labels are part of the loss."""
        return any(term.kind == "hard_label" for term in self.training.terms or ())

    @property
    def reads_soft_labels(self) -> bool:
        """Whether soft labels are part of the loss."""
        return any(isinstance(spec, SoftLabelsSpec) for spec in self.targets.values())

    def facts(self) -> dict[str, Any]:
        """Return, as JSON data, what the weights depend on beside the settings and the rows."""
        return {"view": self.view.to_json(), "num_classes": self.num_classes}
