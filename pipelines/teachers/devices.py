"""Choose the device a teacher runs on; a missing one is an error, never a slow run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from storage.errors import TeacherError
from storage.naming import did_you_mean

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`: auto (cuda, else mps, else cpu), cpu, cuda, cuda:<index> or mps.

    Raises:
        TeacherError: the name is unknown, or the device is not there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
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
        raise TeacherError(f"teacher.device {name!r} is not known.{did_you_mean(name, ('auto', 'cpu', 'cuda', 'cuda:0', 'mps'))}")
    if not torch.cuda.is_available():
        cause = (
            "this torch was built without CUDA; install a CUDA build of torch"
            if torch.version.cuda is None
            else "torch sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
        raise TeacherError(f"teacher.device is {name} but {cause}. To run on the processor, say so: teacher.device: cpu")
    index, count = int(match.group(1) or 0), torch.cuda.device_count()
    if index >= count:
        raise TeacherError(f"teacher.device is {name} but torch sees {count} GPU(s): use cuda:0 to cuda:{count - 1}, or cuda")
    return torch.device("cuda", index)
