"""Choose the device a teacher runs on; a missing one is an error, never a slow run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from storage.errors import TeacherConfigError, TeacherError
from storage.naming import did_you_mean

if TYPE_CHECKING:
    import torch


_LOCAL_WORKER = re.compile(r"worker_(\d+)")


def gpu_of_process(environment: Mapping[str, str], *, num_gpus: int) -> int:
    """Return the GPU of a process that may be one of several on this machine, each of which should have its own.

    Args:
        environment: LOCAL_RANK is set by launchers of trainings (torchrun, accelerate), WORKER_ID by Beam's local runner, which
            counts its workers. Other engines' workers tell nothing of their neighbours.
        num_gpus: of this machine, at least one.
    """
    rank = environment.get("LOCAL_RANK", "")
    worker = _LOCAL_WORKER.fullmatch(environment.get("WORKER_ID", ""))
    place = int(rank) if rank.isdecimal() else int(worker[1]) if worker else 0
    return place % num_gpus


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`: auto (cuda, else mps, else cpu), cpu, cuda, cuda:<index> or mps.

    Of several GPUs, auto and cuda take the one of this process; see `gpu_of_process`.

    Raises:
        TeacherError: the name is unknown, or the device is not there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", gpu_of_process(os.environ, num_gpus=torch.cuda.device_count()))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise TeacherError(
                "teacher.device is mps but this machine has no Metal GPU that torch can use: set teacher.device: cpu"
            )
        return torch.device("mps")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        valid = ("auto", "cpu", "cuda", "cuda:0", "mps")
        raise TeacherConfigError(f"teacher.device {name!r} is not known.{did_you_mean(name, valid)}")
    if not torch.cuda.is_available():
        cause = (
            "this torch was built without CUDA; install a CUDA build of torch"
            if torch.version.cuda is None
            else "torch sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
        raise TeacherError(f"teacher.device is {name} but {cause}. To run on the processor, say so: teacher.device: cpu")
    count = torch.cuda.device_count()
    index = gpu_of_process(os.environ, num_gpus=count) if match.group(1) is None else int(match.group(1))
    if index >= count:
        raise TeacherError(f"teacher.device is {name} but torch sees {count} GPU(s): use cuda:0 to cuda:{count - 1}, or cuda")
    return torch.device("cuda", index)
