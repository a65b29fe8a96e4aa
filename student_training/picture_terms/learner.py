"""What a student of pictures minimises: the weighted sum of its terms, computed from one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.models._manipulate import group_parameters
from torch import nn

from storage.config.terms import TermConfig
from storage.specs import Size, TargetSpec
from student_training.batch import Normalizer
from student_training.picture_terms.batch import PictureTermBatch
from student_training.picture_terms.building import build_picture_terms
from student_training.picture_terms.student import PictureStudent
from student_training.terms.interface import StudentOutput
from student_training.terms.learner import Learner
from student_training.terms.rows import Outputs
from student_training.terms.term import Term

_NETWORK = "student.network."


def make_picture_learner(
    student: PictureStudent,
    terms: Sequence[TermConfig],
    *,
    targets: Mapping[str, TargetSpec],
    num_tokens: Mapping[str, int],
    size: Size,
    normalize: Normalizer,
    mean_class_probs: Mapping[str, npt.NDArray[np.floating]] | None = None,
) -> PictureLearner:
    """Return a student together with what it minimises; projections draw their weights from torch's global generator.

    Args:
        student: the network.
        terms: of the config.
        targets: what is cached, by the names batches have it under; empty where there are hard labels only.
        num_tokens: tokens of every picture, of targets that hold all of them.
        size: height and width of the student's input.
        normalize: pixels to input.
        mean_class_probs: [num_classes] by target, for terms with `rest: mean`.

    Raises:
        ConfigError: terms that these targets or this student cannot serve, each with its key and a remedy.
    """
    built = build_picture_terms(
        terms,
        targets=targets,
        num_tokens=num_tokens,
        shape=student.shape,
        drops_patches=student.drops_patches,
        mean_class_probs=mean_class_probs or {},
    )
    return PictureLearner(student, built, size=size, normalize=normalize)


class PictureLearner(Learner):
    """A student of pictures with what it minimises."""

    student: PictureStudent

    def __init__(self, student: PictureStudent, terms: Sequence[Term], *, size: Size, normalize: Normalizer) -> None:
        self._size = size
        self._normalize = normalize
        needs_logits = any(term.row_set is not None for term in terms)
        self._needs_logits = needs_logits
        super().__init__(student, terms)

    @property
    def network(self) -> nn.Module:
        """The student without what only the loss needs."""
        return self.student.network

    def probe(self) -> StudentOutput:
        """Return what the student gives of a black picture."""
        device = next(self.student.parameters()).device
        found: StudentOutput = self.student(
            torch.zeros(1, 3, *self._size, device=device), wants=self.wants_of(logits=self._needs_logits)
        )
        return found

    def run(self, batch: PictureTermBatch) -> Outputs:
        """Return what the student gives of a batch, on the module's device."""
        output = self.student(self._normalize(batch.images), wants=self.wants_of(logits=self._needs_logits))
        if output.hidden_states and self.student.drops_patches:
            # Of patches that are left out, no term but one of means is allowed.
            kept = output.hidden_states[0].shape[1]
            batch = replace(batch, attention_mask=batch.attention_mask[:, :kept])
        return Outputs(student=output, batch=batch)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm does not decay: positions and prefix tokens of the network."""
        listed: Any = getattr(self.network, "no_weight_decay", set)
        return {_NETWORK + name for name in listed()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return the layer of each parameter by name, as timm counts them for layer-wise decay; projections go with the head.

        Raises:
            ValueError: timm does not say which layers the network has.
        """
        matcher: Any = getattr(self.network, "group_matcher", None)
        if matcher is None:
            raise ValueError("timm knows no layers of this network")
        layers: dict[str, int] = group_parameters(self.network, matcher(coarse=coarse), reverse=True)
        last = max(layers.values())
        return lambda name: layers.get(name.removeprefix(_NETWORK), last)
