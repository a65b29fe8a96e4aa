"""The mix of losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from storage.config.training import LossConfig
from storage.sources.base import NO_LABEL
from student_training.losses.dense import dense_kl, hard_cross_entropy
from student_training.losses.soft_labels import bucket_rest_kl, mean_rest_kl, renormalized_kl, uniform_rest_kl
from student_training.objective import SparseTargets, build_objective

LOGITS = torch.tensor(np.random.default_rng(0).normal(size=(4, 6)), dtype=torch.float32)
LABELS = torch.tensor([0, NO_LABEL, 2, NO_LABEL])
TARGETS = SparseTargets(
    class_ids=torch.tensor([[0, 1], [1, 2], [2, 0], [3, 3]], dtype=torch.int32),
    probs=torch.tensor([[0.6, 0.3], [0.5, 0.2], [0.9, 0.05], [0.4, 0.0]]),
    rest=torch.tensor([0.1, 0.3, 0.05, 0.6]),
)
MEAN = np.array([0.4, 0.2, 0.1, 0.1, 0.1, 0.1])


def test_hard_targets_leave_out_rows_without_a_label():
    losses = build_objective(LossConfig(), kind="hard", smoothing=0.1)(LOGITS, labels=LABELS)
    expected = hard_cross_entropy(LOGITS[[0, 2]], labels=LABELS[[0, 2]], smoothing=0.1).mean()
    assert losses.keys() == {"loss", "hard_loss"}
    torch.testing.assert_close(losses["loss"], expected)
    none = build_objective(LossConfig(), kind="hard")(LOGITS, labels=torch.full((4,), NO_LABEL))
    assert none["loss"] == 0


@pytest.mark.parametrize(
    ("rest", "function"),
    [
        ("uniform", lambda **rows: uniform_rest_kl(LOGITS, **rows, temperature=2.0, generation_temperature=1.5)),
        ("bucket", lambda **rows: bucket_rest_kl(LOGITS, **rows, temperature=2.0, generation_temperature=1.5)),
        (
            "mean",
            lambda **rows: mean_rest_kl(
                LOGITS, **rows, mean_class_probs=torch.tensor(MEAN), temperature=2.0, generation_temperature=1.5
            ),
        ),
        (
            "renormalize",
            lambda class_ids, probs, rest: renormalized_kl(
                LOGITS, class_ids=class_ids, probs=probs, temperature=2.0, generation_temperature=1.5
            ),
        ),
    ],
)
def test_cached_targets_are_mixed_with_hard_labels(rest, function):
    config = LossConfig(rest=rest, distillation_temperature=2.0, hard_weight=0.25)
    objective = build_objective(config, kind="cached", generation_temperature=1.5, mean_class_probs=MEAN)
    losses = objective(LOGITS, labels=LABELS, targets=TARGETS)
    distillation = 4 * function(class_ids=TARGETS.class_ids, probs=TARGETS.probs, rest=TARGETS.rest).mean()
    hard = hard_cross_entropy(LOGITS[[0, 2]], labels=LABELS[[0, 2]]).mean()
    torch.testing.assert_close(losses["distillation_loss"], distillation)
    torch.testing.assert_close(losses["hard_loss"], hard)
    torch.testing.assert_close(losses["loss"], 0.75 * distillation + 0.25 * hard)
    assert tuple(losses) == ("loss", "hard_loss", "distillation_loss") or set(losses) == set(objective.names)


def test_live_targets_and_the_temperature_squared():
    teacher = LOGITS.flip(0)
    for scale in (True, False):
        config = LossConfig(distillation_temperature=3.0, scale_by_temperature_squared=scale)
        losses = build_objective(config, kind="live")(LOGITS, labels=LABELS, teacher_logits=teacher)
        expected = dense_kl(LOGITS, teacher_logits=teacher, temperature=3.0).mean() * (9 if scale else 1)
        assert losses.keys() == {"loss", "distillation_loss"}
        torch.testing.assert_close(losses["loss"], expected)


def test_shares_of_a_batch_average_to_the_whole():
    objective = build_objective(LossConfig(hard_weight=0.5), kind="cached")
    whole = objective(LOGITS, labels=LABELS, targets=TARGETS)
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        targets = SparseTargets(class_ids=TARGETS.class_ids[rows], probs=TARGETS.probs[rows], rest=TARGETS.rest[rows])
        parts.append(
            objective(LOGITS[rows], labels=LABELS[rows], targets=targets, num_rows=4 / 2, num_labelled=torch.tensor(2 / 2))
        )
    for name, value in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, value)


def test_targets_that_are_missing_are_an_error():
    with pytest.raises(ValueError, match="neither"):
        build_objective(LossConfig(), kind="cached")(LOGITS, labels=LABELS)
