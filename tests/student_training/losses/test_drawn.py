"""Cross entropy against drawn labels: exact where the draw is everything, and unbiased on average."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from student_training.losses.drawn import drawn_cross_entropy


def gradient_of(logits, **arguments):
    leaf = logits.clone().requires_grad_()
    losses = drawn_cross_entropy(leaf, **arguments)
    return torch.autograd.grad(losses.sum(), leaf)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_weights_are_the_dense_cross_entropy(temperature):
    rng = np.random.default_rng(0)
    teacher, logits = (torch.tensor(rng.normal(size=(6, 12))) for _ in range(2))
    probs = (teacher / temperature).softmax(dim=1)
    class_ids = torch.tensor(np.stack([rng.permutation(12) for _ in range(6)]))
    found = drawn_cross_entropy(logits, class_ids=class_ids, weights=probs.gather(1, class_ids), temperature=temperature)
    torch.testing.assert_close(found, -(probs * (logits / temperature).log_softmax(dim=1)).sum(dim=1))


@pytest.mark.parametrize("codec", ["sampled", "threshold"])
def test_the_gradient_is_that_of_the_teacher_on_average(codec):
    rng = np.random.default_rng(1)
    num_rows, num_classes = 20_000, 10
    probs = torch.tensor(rng.dirichlet(np.full(num_classes, 0.4)))
    logits = torch.tensor(rng.normal(size=num_classes)).expand(num_rows, num_classes)
    if codec == "sampled":
        class_ids = torch.tensor(rng.choice(num_classes, p=probs.numpy(), size=(num_rows, 5)))
        weights = torch.full(class_ids.shape, 0.2, dtype=torch.float64)
    else:
        # Small probabilities are kept at random, at the value that makes them right on average.
        class_ids = torch.arange(num_classes).expand(num_rows, num_classes)
        drawn = torch.tensor(rng.random((num_rows, num_classes))) < probs / 0.1
        weights = torch.where(probs >= 0.1, probs, 0.1 * drawn)
    expected = logits[0].softmax(dim=0) - probs
    mean = gradient_of(logits, class_ids=class_ids, weights=weights).mean(dim=0)
    # Five times the standard error of the noisiest class.
    tolerance = 5 * float(gradient_of(logits, class_ids=class_ids, weights=weights).std(dim=0).max()) / num_rows**0.5
    assert (mean - expected).abs().max() < tolerance


def test_entries_without_weight_and_empty_rows_count_nothing():
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    class_ids, weights = torch.tensor([[1, 3, 3], [0, 0, 0]]), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    found = drawn_cross_entropy(logits, class_ids=class_ids, weights=weights)
    torch.testing.assert_close(found[0], -logits[0].log_softmax(dim=0)[[1, 3]].mean())
    assert found[1] == 0


def test_repeated_ids_add_up_and_half_precision_is_widened():
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    once = drawn_cross_entropy(logits, class_ids=torch.tensor([[2]]), weights=torch.ones(1, 1))
    twice = drawn_cross_entropy(logits, class_ids=torch.tensor([[2, 2]]), weights=torch.full((1, 2), 0.5))
    assert once.dtype == torch.float32
    torch.testing.assert_close(once, twice)
