"""Devices: what is there is taken, what is not is an error that says what to do."""

from __future__ import annotations

import os

import pytest
import torch

from pipelines.teachers import resolve_device
from pipelines.teachers.devices import gpu_of_process
from storage.errors import TeacherError


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_takes_the_best_there_is() -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto").type == best


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_gpu_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(TeacherError, match=rf"teacher\.device is {name} but .*say so: teacher\.device: cpu"):
        resolve_device(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_gpu_index_is_checked() -> None:
    assert resolve_device("cuda") == torch.device("cuda", gpu_of_process(os.environ, num_gpus=torch.cuda.device_count()))
    with pytest.raises(TeacherError, match=r"teacher\.device is cuda:99 but torch sees"):
        resolve_device("cuda:99")


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({}, [0, 0, 0]),
        ({"LOCAL_RANK": "2"}, [0, 0, 2]),
        ({"LOCAL_RANK": "5", "WORKER_ID": "worker_1"}, [0, 1, 2]),
        ({"WORKER_ID": "worker_1"}, [0, 1, 1]),
        ({"WORKER_ID": "worker_3"}, [0, 1, 0]),
        # Of another engine's workers the number says nothing of those beside it.
        ({"WORKER_ID": "1-2"}, [0, 0, 0]),
        ({"LOCAL_RANK": "", "WORKER_ID": "sdk-worker_1"}, [0, 0, 0]),
    ],
)
def test_processes_of_a_machine_share_its_gpus(environment: dict[str, str], gpus: list[int]) -> None:
    assert [gpu_of_process(environment, num_gpus=num) for num in (1, 2, 3)] == gpus


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a Metal GPU")
def test_metal_that_is_not_there_is_an_error() -> None:
    with pytest.raises(TeacherError, match=r"no Metal GPU that torch can use: set teacher\.device: cpu"):
        resolve_device("mps")


@pytest.mark.parametrize(("name", "meant"), [("cdua", "cuda"), ("CPU", "cpu"), ("cuda:x", "cuda:0"), ("cuda:-1", "cuda")])
def test_unknown_name_is_an_error(name: str, meant: str) -> None:
    with pytest.raises(TeacherError, match=rf"teacher\.device '{name}' is not known\..*{meant}"):
        resolve_device(name)
