"""Names of devices, checked when a config is read: whether a device is there shows only where it is used."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from storage.naming import did_you_mean

_OF_TEACHERS = ("auto", "cpu", "cuda", "cuda:0", "mps")
_OF_TRAINING = ("auto", "cpu", "cuda")


def _of_teachers(name: str) -> str:
    if name not in _OF_TEACHERS and re.fullmatch(r"cuda:\d+", name) is None:
        raise ValueError(f"there is no device {name!r}.{did_you_mean(name, _OF_TEACHERS)}")
    return name


def _of_training(name: str) -> str:
    if name not in _OF_TRAINING:
        raise ValueError(
            f"there is no device {name!r}; valid are auto, cpu and cuda. Choose one of several GPUs with CUDA_VISIBLE_DEVICES"
        )
    return name


TeacherDevice = Annotated[str, AfterValidator(_of_teachers)]
TrainingDevice = Annotated[str, AfterValidator(_of_training)]
