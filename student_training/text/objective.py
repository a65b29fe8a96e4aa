"""What a student of texts minimises: the weighted sum of its terms, computed from one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from storage.config.terms import TermConfig
from storage.specs import TargetSpec, TextViewSpec
from student_training.heads import HeadModule
from student_training.text.interface import Learner, Positions, TextBatch, TextStudent, Wants
from student_training.text.rows import Outputs, positions_of, union_of
from student_training.text.term import Term
from student_training.text.term_building import build_terms


def make_learner(
    student: TextStudent,
    terms: Sequence[TermConfig],
    *,
    targets: Mapping[str, TargetSpec],
    view: TextViewSpec,
    mean_class_probs: Mapping[str, npt.NDArray[np.floating]] | None = None,
    heads: Mapping[str, HeadModule] | None = None,
) -> Learner:
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
    return WeightedTerms(student, built)


class WeightedTerms(Learner):
    """loss = sum of weight * (sum over rows / count) over all terms."""

    def __init__(self, student: TextStudent, terms: Sequence[Term]) -> None:
        super().__init__()
        self.student = student
        self.terms = nn.ModuleList(terms)
        self.names = ("loss", *(term.name for term in terms))
        self._row_set = union_of(term.row_set for term in terms if term.row_set is not None)
        self._vectors = tuple(dict.fromkeys(name for term in terms for name in term.vectors))
        self._freeze_what_no_term_reaches()

    def _freeze_what_no_term_reaches(self) -> None:
        """Take parameters without a gradient (a head without a term, layers above the last that is compared) out of training.

        Weight decay must not wear them down, and processes that wait for their gradients would wait for ever.
        """
        device = next(self.student.parameters()).device
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
        ones = torch.ones(1, 2, dtype=torch.bool, device=device)
        both = Positions(sequence=tokens[0], position=torch.arange(2, device=device))
        wants = self._wants(both)
        was_training = self.student.training
        output = self.student.eval()(tokens, attention_mask=ones, wants=wants)
        self.student.train(was_training)
        layers = {layer for term in self._list() for layer in term.hidden_layers}
        read = [output.hidden_states[layer] for layer in sorted(layers)] + [output.vectors[name] for name in self._vectors]
        read += [tensor for tensor in (output.logits, output.embedding) if tensor is not None]
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(torch.stack([tensor.sum() for tensor in read]).sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def _list(self) -> list[Term]:
        return [term for term in self.terms if isinstance(term, Term)]

    def counts(self, batch: TextBatch) -> Tensor:
        """Return float32 [terms], what each term's sum is divided by. Several processes use the mean over them."""
        return torch.stack([term.count(batch) for term in self._list()])

    def wants(self, batch: TextBatch) -> Wants:
        """Return what the terms need of the student: logits at no other tokens than those that are compared."""
        return self._wants(None if self._row_set is None else positions_of(batch, row_set=self._row_set))

    def _wants(self, positions: Positions | None) -> Wants:
        terms = self._list()
        return Wants(
            logits=self._row_set is not None,
            positions=positions,
            hidden_states=any(term.hidden_layers for term in terms),
            vectors=self._vectors,
            embedding=any(term.needs_embedding for term in terms),
        )

    def forward(self, batch: TextBatch, *, counts: Tensor | None = None) -> dict[str, Tensor]:
        """Return scalars: `loss`, and each term by its name, not yet weighted.

        Args:
            batch: on the module's device.
            counts: divisors; None: those of this batch.
        """
        output = self.student(batch.input_ids, attention_mask=batch.attention_mask, wants=self.wants(batch))
        divisors = self.counts(batch) if counts is None else counts
        # Scores and divergences are small differences of large numbers, which half precision would lose.
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            outputs = Outputs(student=output, batch=batch, computed=self._row_set)
            found = {
                term.name: term.total(outputs) / divisors[number].clamp(min=1e-9) for number, term in enumerate(self._list())
            }
            loss = torch.stack([term.weight * found[term.name] for term in self._list()]).sum()
        return {"loss": loss, **found}
