"""A killed training goes on as if nothing had happened."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from storage.errors import CorruptError, MismatchError
from student_training.metrics import read_metrics
from student_training.trainer import train
from tests.student_training.support import VIEW, TeachingStream, make_config, source_stream, write_pictures

SETTINGS = {
    "targets": {"kind": "cached"},
    "loss": {"hard_weight": 0.3},
    "epochs": 3,
    "ema_decay": 0.95,
    "clip_grad_norm": 1.0,
    "checkpoint_every_steps": 2,
    "log_every_steps": 3,
    "schedule": {"name": "cosine", "warmup_epochs": 0.5},
}
NUM_STEPS = 15


class StopTraining(Exception):
    pass


class StoppingStream(TeachingStream):
    """Fails, as by Ctrl-C, when the rows of a step are read; or takes its time."""

    def __init__(self, source, *, stop_at=None, delay_seconds=0.0):
        super().__init__(source)
        self.stop_at = stop_at
        self.delay_seconds = delay_seconds
        self.reads = 0

    def read(self, **arguments):
        if self.reads == self.stop_at:
            raise StopTraining
        self.reads += 1
        time.sleep(self.delay_seconds)
        return super().read(**arguments)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), per_class=14)


def run(pictures, folder, *, stop_at=None, **changes):
    stream = StoppingStream(source_stream(pictures), stop_at=stop_at)
    config = make_config(pictures, folder, evaluation=True, **{**SETTINGS, **changes})
    return train(config, stream=stream, view=VIEW, num_classes=3)


def figures(folder):
    """Metrics without clock readings."""
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same_student(one, other):
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def straight(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    assert run(pictures, folder).steps == NUM_STEPS
    return folder


@pytest.mark.parametrize("stop_at", [1, 3, 5, 8, 11, 14])
def test_resumed_weights_are_bit_identical(pictures, straight, tmp_path, stop_at):
    with pytest.raises(StopTraining):
        run(pictures, tmp_path, stop_at=stop_at)
    result = run(pictures, tmp_path)
    assert result.resumed_from_step == stop_at // 2 * 2
    assert_same_student(tmp_path, straight)
    assert figures(tmp_path) == figures(straight)


def test_resumed_twice_and_with_loader_workers(pictures, straight, tmp_path):
    for stop_at in (5, 4):
        with pytest.raises(StopTraining):
            run(pictures, tmp_path, stop_at=stop_at)
    run(pictures, tmp_path, loader_workers=2)
    assert_same_student(tmp_path, straight)
    assert figures(tmp_path) == figures(straight)


def test_a_kill_from_outside_loses_nothing(pictures, straight, tmp_path):
    """SIGKILL at some moment while a checkpoint is written after every step."""
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from tests.student_training.support import VIEW, make_config, source_stream
        from tests.student_training.test_resume import SETTINGS, StoppingStream
        from student_training.trainer import train

        pictures = Path({str(pictures)!r})
        settings = {{**SETTINGS, "checkpoint_every_steps": 1}}
        config = make_config(pictures, Path({str(tmp_path)!r}), evaluation=True, **settings)
        train(config, stream=StoppingStream(source_stream(pictures), delay_seconds=0.2), view=VIEW, num_classes=3)
        """
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    while process.poll() is None and len(list((tmp_path / "checkpoints").glob("*.json"))) < 2:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert run(pictures, tmp_path).resumed_from_step >= 2
    assert_same_student(tmp_path, straight)
    assert figures(tmp_path) == figures(straight)


def test_a_damaged_checkpoint_is_set_aside(pictures, straight, tmp_path, caplog):
    with pytest.raises(StopTraining):
        run(pictures, tmp_path, stop_at=7)
    newest = tmp_path / "checkpoints" / "step-00000006.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        result = run(pictures, tmp_path)
    assert result.resumed_from_step == 4
    assert "step-00000006.pt is damaged" in caplog.text
    assert "the checkpoint before it is used" in caplog.text
    assert newest.with_suffix(".pt.damaged").exists()
    assert_same_student(tmp_path, straight)


def test_without_a_whole_checkpoint_it_says_so(pictures, tmp_path):
    with pytest.raises(StopTraining):
        run(pictures, tmp_path, stop_at=5)
    for path in (tmp_path / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptError, match=r"no checkpoint in .* is whole: .*bytes where .* were committed"):
        run(pictures, tmp_path)


def test_another_config_or_stream_is_refused(pictures, tmp_path):
    with pytest.raises(StopTraining):
        run(pictures, tmp_path, stop_at=5)
    with pytest.raises(MismatchError, match=r"training\.epochs: 3 there, 4 asked for"):
        run(pictures, tmp_path, epochs=4)
    with pytest.raises(MismatchError, match=r"training\.student\.kwargs\.drop_path_rate: 0\.2 there, 'not there' asked for"):
        run(pictures, tmp_path, student={"name": "test_vit", "kwargs": {"img_size": 16, "patch_size": 8, "depth": 2}})
    config = make_config(pictures, tmp_path, evaluation=True, **SETTINGS)
    with pytest.raises(MismatchError, match="stream: other samples"):
        train(config, stream=StoppingStream(source_stream(pictures, sample_fraction=0.9)), view=VIEW, num_classes=3)
    assert len(list((tmp_path / "checkpoints").glob("*.json"))) == 2
