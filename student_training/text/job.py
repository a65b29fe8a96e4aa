"""A training of texts, checked and held together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.label_set import LabelSet
from storage.specs import TargetSpec, TextViewSpec
from storage.streams.base import TextStream
from storage.streams.text_source_stream import TextSourceStream
from student_training.heads import HeadModule
from student_training.job import Job
from student_training.text.students import predicts_tokens


@dataclass(frozen=True, kw_only=True)
class TextJob(Job):
    """A training of texts.

    Attributes:
        view: how the sequences were made and masked.
        num_classes: of the targets; None: nothing but the student's config, or the vocabulary, says.
        targets: what is cached, by its name in the experiment; empty with hard labels.
        mean_class_probs: of targets that are soft labels, float [classes], for the rest policy `mean`.
        heads: of targets that keep one, the teacher's frozen head.
        label_sets: what is read of the cache.
        evaluation_stream: the texts to evaluate on, seen as those to train on; None without evaluation.
    """

    stream: TextStream
    view: TextViewSpec
    num_classes: int | None
    targets: Mapping[str, TargetSpec] = field(default_factory=dict)
    mean_class_probs: Mapping[str, npt.NDArray[np.floating[Any]]] = field(default_factory=dict)
    heads: Mapping[str, HeadModule] = field(default_factory=dict)
    label_sets: Sequence[LabelSet] = ()
    evaluation_stream: TextSourceStream | None = None

    @property
    def uses_labels(self) -> bool:
        """Whether hard labels of whole texts are part of the loss; a language model's are its tokens."""
        training = self.training
        if training.terms is not None:
            return any(term.kind == "hard_label" for term in training.terms)
        hard = training.targets.kind == "hard" or training.loss.hard_weight > 0
        return hard and not predicts_tokens(training.text_student)

    def facts(self) -> dict[str, Any]:
        """Return, as JSON data, what the weights depend on beside the settings and the rows."""
        return {"view": self.view.to_json(), "num_classes": self.num_classes}
