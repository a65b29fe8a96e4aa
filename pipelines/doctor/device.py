"""What a process says of the devices that torch finds."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.doctor.report import Device, Gpu
from pipelines.teachers.devices import resolve_device
from storage.errors import TeacherError


def examine_device(asked: str | None) -> Device:
    """Return what torch can compute on, and whether the device that was asked for is there and adds two numbers.

    Args:
        asked: `teacher.device`; None: nothing was asked for.
    """
    try:
        import torch
    except (ImportError, OSError) as error:
        return Device(asked=asked, problem=f"torch cannot be imported: {error}", idle_gpu=_idle_gpu(built_with_cuda=None))
    gpus: tuple[Gpu, ...] = ()
    found = problem = idle = None
    try:
        if torch.cuda.is_available():
            gpus = tuple(_gpu(index) for index in range(torch.cuda.device_count()))
        else:
            idle = _idle_gpu(built_with_cuda=torch.version.cuda is not None)
        if asked is not None:
            device = resolve_device(asked)
            found = str(device)
            if float(torch.ones(2, device=device).sum()) != 2:
                problem = f"{device} cannot add: 1 + 1 is not 2 there"
    except TeacherError as error:
        problem = str(error)
    except RuntimeError as error:
        problem = f"{found or 'a GPU'} is there but does not work: {str(error).splitlines()[0]}"
    return Device(torch_threads=torch.get_num_threads(), gpus=gpus, asked=asked, found=found, problem=problem, idle_gpu=idle)


def _gpu(index: int) -> Gpu:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return Gpu(name=torch.cuda.get_device_name(index), total_bytes=total, free_bytes=free)


def _idle_gpu(*, built_with_cuda: bool | None) -> str | None:
    """Return why a GPU whose driver is there is of no use."""
    if not Path("/dev/nvidia0").exists() and shutil.which("nvidia-smi") is None:
        return None
    if built_with_cuda is None:
        return "there is no torch"
    if not built_with_cuda:
        return "this torch was built without CUDA"
    return "torch sees no GPU: its driver may be too old, or CUDA_VISIBLE_DEVICES hides it"
