"""KL(student || teacher): sparse == dense, in value and gradient."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from student_training.losses.dense import dense_kl, dense_reverse_kl
from student_training.losses.reverse import reverse_kl
from student_training.losses.soft_labels import densify

FLOOR = 1e-3


def sparse_rows(*, rows, num_classes, entries, seed):
    """Top-k of random teachers; each row keeps between 0 and `entries` classes, unused entries repeat an id."""
    rng = np.random.default_rng(seed)
    dense = torch.tensor(rng.normal(scale=3, size=(rows, num_classes))).softmax(dim=1)
    probs, class_ids = dense.topk(entries, dim=1)
    unused = torch.arange(entries)[None, :] >= torch.tensor(rng.integers(0, entries + 1, size=rows))[:, None]
    probs = probs.masked_fill(unused, 0.0)
    return {
        "class_ids": torch.where(unused, int(rng.integers(num_classes)), class_ids).int(),
        "probs": probs,
        "rest": (1 - probs.sum(dim=1)).clamp(min=0),
        "mean_class_probs": torch.tensor(rng.dirichlet(np.full(num_classes, 0.5))),
    }


def dense_reference(logits, rows, *, rest_policy, temperature, generation_temperature):
    """The same from dense targets, written out."""
    kept = torch.zeros_like(logits).scatter_add(1, rows["class_ids"].long(), (rows["probs"] > 0).double()) > 0
    rest = torch.where(kept.all(dim=1), 0.0, rows["rest"].clamp(min=FLOOR))
    target = densify(
        rows["class_ids"],
        probs=rows["probs"],
        rest=rest,
        num_classes=logits.shape[1],
        rest_policy="mean" if rest_policy == "mean" else "uniform",
        mean_class_probs=rows["mean_class_probs"],
    )
    target = target.pow(generation_temperature / temperature)
    target = target / target.sum(dim=1, keepdim=True)
    q = (logits / temperature).softmax(dim=1)
    if rest_policy == "bucket":
        q, target = (torch.cat([dense * kept, (dense * ~kept).sum(dim=1, keepdim=True)], dim=1) for dense in (q, target))
    # Outcomes without mass on either side; the logarithm of 0 would make the gradient NaN.
    some = target > 0
    return torch.where(some, q * (torch.where(some, q, 1.0).log() - torch.where(some, target, 1.0).log()), 0.0).sum(dim=1)


@settings(max_examples=60, deadline=None)
@given(
    rest_policy=st.sampled_from(["uniform", "mean", "bucket"]),
    num_classes=st.integers(2, 30),
    share=st.floats(0, 1),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
    generation_temperature=st.sampled_from([1.0, 2.0]),
    seed=st.integers(0, 2**20),
)
def test_sparse_equals_dense(rest_policy, num_classes, share, temperature, generation_temperature, seed):
    rows = sparse_rows(rows=4, num_classes=num_classes, entries=max(1, round(share * num_classes)), seed=seed)
    logits = torch.tensor(np.random.default_rng(seed + 1).normal(scale=3, size=(4, num_classes)), requires_grad=True)
    temperatures = {"temperature": temperature, "generation_temperature": generation_temperature}
    sparse = reverse_kl(logits, **rows, rest_policy=rest_policy, rest_floor=FLOOR, **temperatures)
    dense = dense_reference(logits, rows, rest_policy=rest_policy, **temperatures)
    torch.testing.assert_close(sparse, dense, rtol=1e-8, atol=1e-8)
    gradients = [torch.autograd.grad(losses.sum(), logits, retain_graph=True)[0] for losses in (sparse, dense)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("rest_policy", ["uniform", "mean", "bucket"])
def test_all_classes_kept_equals_the_live_teacher(rest_policy):
    rng = np.random.default_rng(0)
    teacher, student = (torch.tensor(rng.normal(scale=2, size=(8, 20))) for _ in range(2))
    probs, class_ids = teacher.softmax(dim=1).topk(20, dim=1)
    found = reverse_kl(
        student,
        class_ids=class_ids,
        probs=probs,
        rest=torch.full((8,), 1e-6, dtype=torch.float64),
        rest_policy=rest_policy,
        rest_floor=FLOOR,
        mean_class_probs=probs.mean(dim=0),
        temperature=2.0,
    )
    expected = dense_reverse_kl(student, teacher_logits=teacher, temperature=2.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(expected, dense_kl(teacher, teacher_logits=student, temperature=2.0))


@pytest.mark.parametrize("rest_policy", ["uniform", "mean", "bucket"])
def test_a_rest_of_zero_is_finite(rest_policy):
    logits = (200 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    losses = reverse_kl(
        logits,
        class_ids=torch.tensor([[1, 0], [2, 2], [0, 1]]),
        probs=torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]]),
        rest=torch.tensor([0.0, 1.0, 0.0]),
        rest_policy=rest_policy,
        rest_floor=1e-6,
        mean_class_probs=torch.tensor([1.0, 0.0, 0.0, 0.0]),
    )
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    assert (losses > -1e-5).all()


def test_the_mean_policy_says_what_it_needs():
    with pytest.raises(ValueError, match="mean_class_probs"):
        reverse_kl(
            torch.zeros(1, 3),
            class_ids=torch.tensor([[0]]),
            probs=torch.ones(1, 1),
            rest=torch.zeros(1),
            rest_policy="mean",
            rest_floor=1e-6,
        )
