"""What a student of texts minimises: the weighted sum of its terms, computed from one forward pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from storage.config.terms import TermConfig
from storage.specs import TargetSpec, TextViewSpec
from student_training.heads import HeadModule
from student_training.terms.interface import Positions, StudentOutput, Wants
from student_training.terms.learner import Learner
from student_training.terms.term import Term
from student_training.text.interface import TextBatch, TextStudent
from student_training.text.layer_initialisation import layers_of
from student_training.text.rows import TextOutputs, positions_of, union_of
from student_training.text.term_building import build_terms

_NETWORK = "student.network."


def make_learner(
    student: TextStudent,
    terms: Sequence[TermConfig],
    *,
    targets: Mapping[str, TargetSpec],
    view: TextViewSpec,
    mean_class_probs: Mapping[str, npt.NDArray[np.floating]] | None = None,
    heads: Mapping[str, HeadModule] | None = None,
) -> TextLearner:
    """Return a student together with what it minimises; projections draw their weights from torch's global generator.

    Args:
        student: the network.
        terms: as `terms_of` gives them.
        targets: what is cached, by the names batches have it under; empty where there are hard labels only.
        view: how the texts are seen.
        mean_class_probs: [num_classes] by target, for terms with `rest: mean`.
        heads: the teacher's kept head by target, for soft labels from hidden states.

    Raises:
        ConfigError: terms that these targets, this view or this student cannot serve, each with its key and a remedy.
    """
    built = build_terms(
        terms, targets=targets, view=view, shape=student.shape, mean_class_probs=mean_class_probs or {}, heads=heads or {}
    )
    return TextLearner(student, built)


class TextLearner(Learner):
    """A student of texts with what it minimises."""

    student: TextStudent

    def __init__(self, student: TextStudent, terms: Sequence[Term]) -> None:
        self._row_set = union_of(term.row_set for term in terms if term.row_set is not None)
        super().__init__(student, terms)

    def probe(self) -> StudentOutput:
        """Return what the student gives of two tokens."""
        device = next(self.student.parameters()).device
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
        ones = torch.ones(1, 2, dtype=torch.bool, device=device)
        both = Positions(sequence=tokens[0], position=torch.arange(2, device=device))
        output: StudentOutput = self.student(tokens, attention_mask=ones, wants=self._wants(both))
        return output

    def wants(self, batch: TextBatch) -> Wants:
        """Return what the terms need of the student: logits at no other tokens than those that are compared."""
        return self._wants(None if self._row_set is None else positions_of(batch, row_set=self._row_set))

    def _wants(self, positions: Positions | None) -> Wants:
        return self.wants_of(logits=self._row_set is not None, positions=positions)

    def run(self, batch: TextBatch) -> TextOutputs:
        """Return what the student gives of a batch, on the module's device."""
        output = self.student(batch.input_ids, attention_mask=batch.attention_mask, wants=self.wants(batch))
        return TextOutputs(student=output, batch=batch, computed=self._row_set)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:  # noqa: ARG002  # timm passes it
        """Return the layer of each parameter by name: embeddings have 0, the head and projections the last.

        Raises:
            ValueError: the student keeps no layers of its own.
        """
        network = getattr(self.student, "network", None)
        start = layers_of(network) if isinstance(network, PreTrainedModel) else None
        if network is None or start is None:
            raise ValueError("this student has no layers, or shares them, and layer_decay would do nothing")
        inside = re.compile(rf"{re.escape(f'{_NETWORK}{start}')}(\d+)\.")
        layers, last = {}, 0
        for name, _ in self.named_parameters():
            found = inside.match(name)
            # In the order of the network: embeddings come before its layers.
            last = int(found[1]) + 1 if found else last and network.config.num_hidden_layers + 1
            layers[name] = last
        return layers.__getitem__
