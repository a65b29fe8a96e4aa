"""The law of the losses: sparse == dense, in value and gradient."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings

from student_training.losses.dense import dense_kl
from student_training.losses.soft_labels import bucket_rest_kl, densify, mean_rest_kl, renormalized_kl, uniform_rest_kl

POLICIES = ("uniform", "mean", "bucket", "renormalize")


def sparse_rows(*, rows, num_classes, entries, seed, spread=3.0, dtype=torch.float64):
    """Top-k of random teachers; each row keeps between 0 and `entries` classes, unused entries repeat an id."""
    rng = np.random.default_rng(seed)
    dense = torch.tensor(rng.normal(scale=spread, size=(rows, num_classes))).softmax(dim=1)
    probs, class_ids = dense.topk(entries, dim=1)
    used = torch.tensor(rng.integers(0, entries + 1, size=rows))
    unused = torch.arange(entries)[None, :] >= used[:, None]
    probs = probs.masked_fill(unused, 0.0)
    class_ids = torch.where(unused, int(rng.integers(num_classes)), class_ids)
    mean = torch.tensor(rng.dirichlet(np.full(num_classes, 0.3)))
    return {
        "class_ids": class_ids.int(),
        "probs": probs.to(dtype),
        "rest": (1 - probs.sum(dim=1)).clamp(min=0).to(dtype),
        "mean_class_probs": mean.to(dtype),
    }


def sparse_kl(logits, rows, *, policy, **temperatures):
    arguments = {name: rows[name] for name in ("class_ids", "probs", "rest")}
    if policy == "uniform":
        return uniform_rest_kl(logits, **arguments, **temperatures)
    if policy == "mean":
        return mean_rest_kl(logits, **arguments, mean_class_probs=rows["mean_class_probs"], **temperatures)
    if policy == "bucket":
        return bucket_rest_kl(logits, **arguments, **temperatures)
    del arguments["rest"]
    return renormalized_kl(logits, **arguments, **temperatures)


def dense_policy_kl(logits, rows, *, policy, temperature, generation_temperature):
    """The same from dense targets, written out."""
    student = (logits / temperature).log_softmax(dim=1)
    exponent = generation_temperature / temperature
    dense_policy = "uniform" if policy == "bucket" else policy
    target = densify(
        rows["class_ids"],
        probs=rows["probs"],
        rest=rows["rest"],
        num_classes=logits.shape[1],
        rest_policy=dense_policy,
        mean_class_probs=rows["mean_class_probs"],
    )
    target = torch.where(target > 0, target, 0.0).pow(exponent) * (target > 0)
    total = target.sum(dim=1, keepdim=True)
    target = target / torch.where(total > 0, total, 1.0)
    if policy == "bucket":
        kept = torch.zeros_like(target).scatter_add(1, rows["class_ids"].long(), (rows["probs"] > 0).double()) > 0
        bucket = (target * ~kept).sum(dim=1, keepdim=True)
        student_bucket = torch.logsumexp(student.masked_fill(kept, -1e30), dim=1, keepdim=True)
        target = torch.cat([target * kept, bucket], dim=1)
        student = torch.cat([student, student_bucket], dim=1)
    return (torch.special.xlogy(target, target) - target * student).sum(dim=1)


def test_weights_that_vanish_as_float32_still_spread_the_rest():
    mean = torch.tensor([1.0, 0.0, 0.0])
    for dtype in (torch.float32, torch.float64):
        rows = {
            "class_ids": torch.tensor([[0]]),
            "probs": torch.tensor([[0.6]], dtype=dtype),
            "rest": torch.tensor([0.4], dtype=dtype),
        }
        logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype, requires_grad=True)
        loss = mean_rest_kl(logits, **rows, mean_class_probs=mean, temperature=1.0, generation_temperature=4.0)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        share = 2 * (0.4 / 2) ** 4 / (0.6**4 + 2 * (0.4 / 2) ** 4)
        expected = logits.detach().softmax(dim=1) - torch.tensor([[1 - share, share / 2, share / 2]], dtype=dtype)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
        assert loss.isfinite().all()


def value_and_gradient(function, logits):
    leaf = logits.clone().requires_grad_()
    losses = function(leaf)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    num_classes=st.integers(2, 40),
    share=st.floats(0, 1),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
    generation_temperature=st.sampled_from([1.0, 2.0]),
    seed=st.integers(0, 2**20),
)
# The kept class has nearly all of the mean: sums over the others must not come from a difference.
@example(policy="mean", num_classes=2, share=0.0, temperature=0.5, generation_temperature=2.0, seed=0)
def test_sparse_equals_dense(policy, num_classes, share, temperature, generation_temperature, seed):
    entries = max(1, round(share * num_classes))
    rows = sparse_rows(rows=4, num_classes=num_classes, entries=entries, seed=seed)
    logits = torch.tensor(np.random.default_rng(seed + 1).normal(scale=4, size=(4, num_classes)))
    temperatures = {"temperature": temperature, "generation_temperature": generation_temperature}
    value, gradient = value_and_gradient(lambda z: sparse_kl(z, rows, policy=policy, **temperatures), logits)
    dense_value, dense_gradient = value_and_gradient(lambda z: dense_policy_kl(z, rows, policy=policy, **temperatures), logits)
    torch.testing.assert_close(value, dense_value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, dense_gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("policy", POLICIES)
def test_all_classes_kept_equals_the_live_teacher(policy, temperature):
    rng = np.random.default_rng(3)
    teacher = torch.tensor(rng.normal(scale=2, size=(64, 100)), dtype=torch.float32)
    student = torch.tensor(rng.normal(scale=2, size=(64, 100)), dtype=torch.float32)
    probs, class_ids = teacher.softmax(dim=1).topk(100, dim=1)
    rows = {
        "class_ids": class_ids,
        "probs": probs,
        "rest": torch.full((64,), 1e-4),  # nothing is left to take it, so it must not count
        "mean_class_probs": torch.tensor(rng.dirichlet(np.full(100, 0.1))),
    }
    value, gradient = value_and_gradient(lambda z: sparse_kl(z, rows, policy=policy, temperature=temperature), student)
    live, live_gradient = value_and_gradient(lambda z: dense_kl(z, teacher_logits=teacher, temperature=temperature), student)
    torch.testing.assert_close(value, live, rtol=1e-6, atol=0)
    assert (gradient - live_gradient).norm() <= 1e-6 * live_gradient.norm()


@pytest.mark.parametrize("policy", POLICIES)
def test_unused_entries_contribute_nothing(policy):
    rows = sparse_rows(rows=6, num_classes=30, entries=5, seed=5)
    logits = torch.tensor(np.random.default_rng(6).normal(scale=4, size=(6, 30)))
    padded = dict(rows)
    padded["class_ids"] = torch.cat([rows["class_ids"], rows["class_ids"][:, :1].repeat(1, 3), torch.full((6, 1), 29)], dim=1)
    padded["probs"] = torch.cat([rows["probs"], torch.zeros(6, 4, dtype=torch.float64)], dim=1)
    value, gradient = value_and_gradient(lambda z: sparse_kl(z, rows, policy=policy, temperature=2.0), logits)
    padded_value, padded_gradient = value_and_gradient(lambda z: sparse_kl(z, padded, policy=policy, temperature=2.0), logits)
    torch.testing.assert_close(value, padded_value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, padded_gradient, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scale", [1.0, 200.0])
@pytest.mark.parametrize("generation_temperature", [1.0, 8.0])
def test_edges_are_finite(policy, temperature, scale, generation_temperature):
    """Rows: sure of one class, keeps nothing, keeps every class with a rest from rounding, rest of a subnormal size."""
    num_classes = 4
    rows = {
        "class_ids": torch.tensor([[1, 0, 0, 0], [2, 2, 2, 2], [0, 1, 2, 3], [3, 0, 0, 0]]),
        "probs": torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0]]),
        "rest": torch.tensor([0.0, 1.0, 6e-8, 1e-40]),
        "mean_class_probs": torch.tensor([0.7, 0.3, 0.0, 0.0]),
    }
    temperatures = {"temperature": temperature, "generation_temperature": generation_temperature}
    logits = scale * torch.tensor(np.random.default_rng(0).normal(size=(4, num_classes)), dtype=torch.float32)
    value, gradient = value_and_gradient(lambda z: sparse_kl(z, rows, policy=policy, **temperatures), logits)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    assert (value > -1e-5).all()
    if policy in ("bucket", "renormalize"):
        assert value[1] == 0


def test_the_bucket_is_exact_where_subtraction_would_cancel():
    """A student with leftover mass 1e-12 next to 1: float32 1 - sum would be 0."""
    logits = torch.tensor([[27.6310211159, 0.0, 0.0]])
    loss = bucket_rest_kl(
        logits, class_ids=torch.tensor([[0]]), probs=torch.tensor([[0.9]]), rest=torch.tensor([0.1]), temperature=1.0
    )
    expected = 0.9 * math.log(0.9) + 0.1 * (math.log(0.1) - math.log(2e-12))
    torch.testing.assert_close(loss, torch.tensor([expected]), rtol=1e-5, atol=0)


def test_numbers_by_hand():
    """One row over four classes, two kept, a student that is even everywhere."""
    logits = torch.zeros(1, 4)
    rows = {
        "class_ids": torch.tensor([[2, 0]]),
        "probs": torch.tensor([[0.5, 0.3]]),
        "rest": torch.tensor([0.2]),
        "mean_class_probs": torch.tensor([0.2, 0.6, 0.0, 0.2]),
    }
    entropy = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3))
    log4 = math.log(4)
    expected = {
        "uniform": log4 - entropy + 0.2 * math.log(0.1),
        "mean": log4 - entropy + 0.15 * math.log(0.15) + 0.05 * math.log(0.05),
        "bucket": 0.8 * log4 + 0.2 * math.log(2) - entropy + 0.2 * math.log(0.2),
        "renormalize": log4 + 0.625 * math.log(0.625) + 0.375 * math.log(0.375),
    }
    for policy, value in expected.items():
        assert sparse_kl(logits, rows, policy=policy).item() == pytest.approx(value, abs=2e-7), policy


def test_half_precision_logits_are_widened():
    rows = sparse_rows(rows=3, num_classes=20, entries=4, seed=9, dtype=torch.float32)
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(1)).bfloat16()
    for policy in POLICIES:
        torch.testing.assert_close(sparse_kl(logits, rows, policy=policy), sparse_kl(logits.float(), rows, policy=policy))


def test_the_gradient_reaches_only_the_student():
    rows = sparse_rows(rows=2, num_classes=8, entries=3, seed=2)
    for name in ("probs", "rest", "mean_class_probs"):
        rows[name].requires_grad_()
    logits = torch.zeros(2, 8, dtype=torch.float64, requires_grad=True)
    for policy in POLICIES:
        sparse_kl(logits, rows, policy=policy).sum().backward()
    assert logits.grad is not None
    assert all(rows[name].grad is None for name in ("probs", "rest", "mean_class_probs"))


def test_a_mean_of_zero_on_all_other_classes_spreads_evenly():
    rows = {
        "class_ids": torch.tensor([[0, 1]] * 4),
        "probs": torch.tensor([[0.5, 0.2]] * 4, dtype=torch.float64),
        "rest": torch.tensor([0.3] * 4, dtype=torch.float64),
        "mean_class_probs": torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0, 0.0]),
    }
    logits = torch.tensor(np.random.default_rng(1).normal(size=(4, 6)))
    torch.testing.assert_close(
        sparse_kl(logits, rows, policy="mean"), sparse_kl(logits, rows, policy="uniform"), rtol=1e-6, atol=1e-7
    )


def test_densify_is_a_distribution_and_says_what_it_needs():
    rows = sparse_rows(rows=5, num_classes=12, entries=4, seed=11)
    arguments = {"probs": rows["probs"], "rest": rows["rest"], "num_classes": 12}
    for policy in ("uniform", "mean"):
        dense = densify(rows["class_ids"], **arguments, rest_policy=policy, mean_class_probs=rows["mean_class_probs"])
        torch.testing.assert_close(dense.sum(dim=1), torch.ones(5, dtype=torch.float64))
    with pytest.raises(ValueError, match="mean_class_probs"):
        densify(rows["class_ids"], **arguments, rest_policy="mean")
