"""Losses in chunks are those of all rows at once."""

from __future__ import annotations

import pytest
import torch

from student_training.terms import chunks
from student_training.terms.chunks import sum_of_rows
from student_training.text.objective import make_learner
from tests.student_training.text.text_batches import MASKED, SPECS, VOCABULARY, make_batch, make_student, make_terms


def losses(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("max_entries", [1, 20, 63, 10_000])
def test_value_and_gradient(max_entries):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(13, 7, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(7, (13,), generator=generator)
    found = sum_of_rows(losses, logits, labels, entries_per_row=7, max_entries=max_entries)
    expected = losses(logits, labels).sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (found, expected)))


def test_no_rows_cost_nothing():
    logits = torch.zeros(0, 7, requires_grad=True)
    total = sum_of_rows(losses, logits, torch.zeros(0, dtype=torch.int64), entries_per_row=7)
    total.backward()
    assert total == 0


def test_a_learner_in_chunks_learns_the_same(monkeypatch):
    terms = make_terms(
        {"kind": "soft_labels", "temperature": 2.0},
        {"kind": "hard_tokens"},
        {"kind": "attention", "layers": [[4, 2]]},
        {"kind": "relations", "target": "attention", "layers": [[2, 1]]},
        {"kind": "relations", "target": "relations", "layers": [[4, 2]], "vectors": ["query", "value"]},
    )
    names = ("all", "attention", "relations")
    learner = make_learner(make_student("bert").eval(), terms, targets={name: SPECS[name] for name in names}, view=MASKED)
    batch = make_batch((7, 3, 10), specs=names)
    gradients = []
    for max_entries in (chunks.MAX_ENTRIES, 3 * VOCABULARY, 1):
        monkeypatch.setattr(chunks, "MAX_ENTRIES", max_entries)
        learner.zero_grad()
        learner(batch)["loss"].backward()
        gradients.append([parameter.grad for parameter in learner.parameters() if parameter.requires_grad])
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, rtol=1e-4, atol=1e-6)
