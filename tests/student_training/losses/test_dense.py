"""Losses against a live teacher and hard labels."""

from __future__ import annotations

import math

import pytest
import torch

from storage.sources.base import NO_LABEL
from student_training.losses.dense import dense_kl, hard_cross_entropy


def test_dense_kl_by_hand_and_zero_on_agreement():
    teacher = torch.tensor([[math.log(0.7), math.log(0.2), math.log(0.1)]])
    value = dense_kl(torch.zeros(1, 3), teacher_logits=teacher)
    expected = 0.7 * math.log(2.1) + 0.2 * math.log(0.6) + 0.1 * math.log(0.3)
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert dense_kl(teacher + 5, teacher_logits=teacher, temperature=3.0).abs().item() < 1e-6


def test_dense_kl_agrees_with_torch_at_a_temperature():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    expected = torch.nn.functional.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(dense_kl(student, teacher_logits=teacher, temperature=2.0), expected)


def test_no_gradient_reaches_the_teacher():
    teacher = torch.zeros(1, 3, requires_grad=True)
    student = torch.ones(1, 3).cumsum(1).requires_grad_()
    dense_kl(student, teacher_logits=teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_hard_cross_entropy_with_smoothing_and_without_labels():
    logits = torch.tensor([[math.log(0.7), math.log(0.2), math.log(0.1)]]).repeat(2, 1)
    losses = hard_cross_entropy(logits, labels=torch.tensor([0, NO_LABEL]), smoothing=0.3)
    smooth = 0.7 * math.log(0.7) + 0.1 * (math.log(0.7) + math.log(0.2) + math.log(0.1))
    assert losses.tolist() == pytest.approx([-smooth, 0.0], abs=1e-6)
