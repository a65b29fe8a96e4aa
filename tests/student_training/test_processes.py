"""Two processes train as one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from storage.config.training import PreprocessingConfig
from storage.errors import ConfigError
from student_training.evaluation import Evaluator
from student_training.metrics import read_metrics
from student_training.students import resolve_preprocessing
from student_training.trainer import train
from tests.student_training.support import MAX_PIXELS, VIEW, TeachingStream, make_config, source_stream, write_pictures

SETTINGS = {
    "targets": {"kind": "cached"},
    "student": {"name": "test_vit", "kwargs": {"img_size": 16, "patch_size": 8, "depth": 2}},
    "loss": {"hard_weight": 0.4, "distillation_temperature": 2.0},
    "optimizer": {"name": "sgd", "learning_rate": 0.05},
    "batch_size": 7,
    "clip_grad_norm": 1.0,
    "ema_decay": 0.9,
}


class PartlyLabelledStream(TeachingStream):
    """Every third sample has no hard label."""

    def read(self, **arguments):
        rows = super().read(**arguments)
        for row, key in enumerate(rows.keys):
            if int(key[-7:-4]) % 3 == 0:
                rows.labels[row] = -1
        return rows


def run_here(pictures, folder):
    return train(
        make_config(pictures, folder, evaluation=True, **SETTINGS),
        stream=PartlyLabelledStream(source_stream(pictures)),
        view=VIEW,
        num_classes=3,
    )


def launch(pictures, folder, *, world_size):
    start(
        f"""
        from pathlib import Path
        from tests.student_training.test_processes import run_here

        result = run_here(Path({str(pictures)!r}), Path({str(folder)!r}))
        assert result.num_evaluated == 48, result
        """,
        world_size=world_size,
    )


def start(script, *, world_size, warnings="error"):
    """Start processes as `accelerate launch --cpu` and `torchrun` do: with their places in the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    common = {
        **os.environ,
        "PYTHONPATH": str(root),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", warnings, "-c", textwrap.dedent(script)],
            cwd=root,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


@pytest.mark.integration
def test_two_processes_give_the_curve_of_one(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    run_here(pictures, tmp_path / "one")
    launch(pictures, tmp_path / "two", world_size=2)
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 14
    for line, other in zip(one, two, strict=True):
        for name in set(line) - {"kind", "images_per_second"}:
            assert other[name] == pytest.approx(line[name], rel=1e-4), (name, line["step"])
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)


def run_with_batch_norm(pictures, folder):
    settings = {**SETTINGS, "targets": {"kind": "hard"}, "student": {"name": "test_resnet"}, "loss": {}, "epochs": 1}
    return train(
        make_config(pictures, folder, evaluation=True, **settings),
        stream=source_stream(pictures),
        view=VIEW,
        num_classes=3,
    )


@pytest.mark.integration
def test_figures_are_those_of_the_student_that_leaves(tmp_path):
    """Every process has batch norm statistics of its own; the main one's are exported."""
    pictures = write_pictures(tmp_path / "pictures")
    folder = tmp_path / "two"
    start(
        f"""
        from pathlib import Path
        from tests.student_training.test_processes import run_with_batch_norm

        run_with_batch_norm(Path({str(pictures)!r}), Path({str(folder)!r}))
        """,
        world_size=2,
    )
    student = timm.create_model(f"local-dir:{folder}", pretrained=True)
    found = Evaluator(
        stream=source_stream(pictures),
        preprocessing=resolve_preprocessing(PreprocessingConfig(), model=student, view=VIEW),
        num_classes=3,
        batch_size=10,
        max_pixels=MAX_PIXELS,
    ).run(student, accelerator=Accelerator(cpu=True))
    (*_, last) = (line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "evaluation")
    assert last["cross_entropy"] == pytest.approx(found.cross_entropy, rel=1e-5)


def test_gradients_of_several_batches_are_refused(tmp_path, monkeypatch):
    """A launcher may ask for them; accelerate would divide the gradient of each batch by their number."""
    pictures = write_pictures(tmp_path / "pictures", per_class=3)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ConfigError, match=r"asks for 4 gradient accumulation steps .*; unset it: training.batch_size"):
        run_here(pictures, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
