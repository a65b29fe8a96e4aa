"""Meters."""

from __future__ import annotations

import time

import pytest
import torch
from accelerate import Accelerator

from student_training.meters import DivergenceError, LossGuard, LossMeter, Throughput

CPU = torch.device("cpu")


def test_the_guard_names_the_step_and_some_samples():
    guard = LossGuard()
    guard.watch(torch.tensor(1.0), step=1, keys=["a"])
    with pytest.raises(DivergenceError, match=r"loss of step 2 is inf, on the samples 'k0', .*'k7' and 3 more; .*learning_rate"):
        guard.watch(torch.tensor(float("inf")), step=2, keys=[f"k{number}" for number in range(11)])


def test_means_go_on_from_a_checkpoint():
    accelerator = Accelerator(cpu=True)
    meter = LossMeter(("loss", "hard_loss"), device=CPU)
    meter.add({"loss": torch.tensor(1.0), "hard_loss": torch.tensor(4.0)})
    later = LossMeter(("loss", "hard_loss"), device=CPU)
    later.load_state(meter.state(accelerator))
    for found in (meter, later):
        found.add({"loss": torch.tensor(2.0), "hard_loss": torch.tensor(0.0)})
        assert found.report(accelerator) == {"loss": 1.5, "hard_loss": 2.0}
        found.add({"loss": torch.tensor(3.0), "hard_loss": torch.tensor(1.0)})
        assert found.report(accelerator) == {"loss": 3.0, "hard_loss": 1.0}


def test_speed_leaves_out_the_first_updates_and_pauses():
    throughput = Throughput(device=CPU, skip_steps=1)
    time.sleep(0.3)
    throughput.add(1000)
    started = time.perf_counter()
    for _ in range(2):
        time.sleep(0.05)
        throughput.add(10)
    training_seconds = time.perf_counter() - started
    with throughput.pause():
        time.sleep(0.3)
    assert 20 / (training_seconds + 0.2) < throughput.steady() < 1.05 * 20 / training_seconds
    assert throughput.lap() < 1020 / 0.35
    throughput.add(10)
    assert throughput.lap() > 10
