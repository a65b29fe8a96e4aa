"""Two processes train as one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from student_training.metrics import read_metrics
from student_training.trainer import train
from tests.student_training.support import VIEW, TeachingStream, make_config, source_stream, write_pictures

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
        _, errors = process.communicate(timeout=120)
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
