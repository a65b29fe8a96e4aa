"""Optimisers and schedules."""

from __future__ import annotations

from itertools import pairwise

import pytest
import timm

from storage.config.training import OptimizerConfig, ScheduleConfig
from storage.errors import ConfigError
from student_training.optimization import create_optimizer, create_scheduler


@pytest.fixture(scope="module")
def model():
    return timm.create_model("test_vit", img_size=16, patch_size=8, depth=2, num_classes=3)


def rates(model, schedule, *, num_steps=20, steps_per_epoch=5, group=-1, **optimizer):
    """Learning rate of every update and, last, after training."""
    made = create_optimizer(model, config=OptimizerConfig(learning_rate=1.0, **optimizer))
    scheduler = create_scheduler(made, config=ScheduleConfig(**schedule), num_steps=num_steps, steps_per_epoch=steps_per_epoch)
    found = []
    for step in range(num_steps):
        found.append(made.param_groups[group]["lr"])
        scheduler.step_update(step + 1)
    return [*found, made.param_groups[group]["lr"]]


def test_cosine_warms_up_to_the_peak_and_ends_at_the_minimum(model):
    found = rates(model, {"name": "cosine", "warmup_epochs": 1, "warmup_learning_rate": 0.1, "min_learning_rate": 0.01})
    assert found[:6] == pytest.approx([0.1, 0.28, 0.46, 0.64, 0.82, 1.0])
    assert found[-1] == pytest.approx(0.01)
    assert all(later < earlier for earlier, later in pairwise(found[5:]))


def test_linear_step_and_constant(model):
    assert rates(model, {"name": "linear"}) == pytest.approx([1 - step / 20 for step in range(21)])
    found = rates(model, {"name": "step", "decay_epochs": 2, "decay_rate": 0.5})
    assert found == pytest.approx([1.0] * 10 + [0.5] * 10 + [0.25])
    found = rates(model, {"name": "constant", "warmup_epochs": 0.4, "warmup_learning_rate": 0.0})
    assert found == pytest.approx([0.0, 0.5, *[1.0] * 19])


def test_layers_decay_from_the_first_update(model):
    first = rates(model, {"name": "constant"}, layer_decay=0.5, group=0)
    last = rates(model, {"name": "constant"}, layer_decay=0.5, group=-1)
    assert first[0] == first[-1] < last[0] == 1.0


def test_biases_and_norms_are_not_decayed(model):
    optimizer = create_optimizer(model, config=OptimizerConfig(weight_decay=0.1))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    decayed = [parameter for group in optimizer.param_groups if group["weight_decay"] for parameter in group["params"]]
    assert all(parameter.ndim > 1 for parameter in decayed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adamv"}, "no optimiser 'adamv'. Did you mean 'adam"),
        ({"name": "adamw", "kwargs": {"momentums": 1}}, "cannot be made: .*momentums"),
        ({"name": "adahessian"}, "'adahessian' needs second derivatives"),
        ({"name": "lookahead_adahessian"}, "'lookahead_adahessian' needs second derivatives"),
    ],
)
def test_optimisers_that_cannot_be_made(model, fields, message):
    with pytest.raises(ConfigError, match=message):
        create_optimizer(model, config=OptimizerConfig(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cosine", "warmup_epochs": 4.0}, "20 updates but training has 20"),
        ({"name": "step"}, "decay_epochs is not set"),
        ({"name": "cosine", "decay_epochs": 2}, "belongs to the step schedule"),
        ({"name": "constant", "min_learning_rate": 0.1}, "has no end value"),
    ],
)
def test_schedules_that_make_no_sense(model, fields, message):
    with pytest.raises(ConfigError, match=message):
        rates(model, fields)
