"""One process's share of a training batch, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from storage.soft_labels import SoftLabels
from storage.specs import Normalization
from student_training.left_out import LeftOut
from student_training.objective import SparseTargets


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Rows of one step that one process trains on.

    Attributes:
        step: update, counted from 0 over all epochs.
        keys: sample keys of the rows that are present, for messages.
        images: uint8 [B, 3, H, W], the student's views; where a picture cannot be read, another one of the batch stands in its
            place, so that every process has the rows it is to have.
        labels: int64 [B], hard labels, NO_LABEL where there is none or the row is not present.
        targets: cached soft labels; None from a source alone.
        teacher_views: uint8 [B, H', W', 3], the views at the teacher's size, on the CPU; None unless a live teacher wants them.
        present: bool [B], whether the row is of its own picture, and counts.
        left_out: the pictures of the others.
    """

    step: int
    keys: list[str]
    images: Tensor
    labels: Tensor
    targets: SparseTargets | None
    teacher_views: Tensor | None
    present: Tensor
    left_out: tuple[LeftOut, ...] = ()

    def __len__(self) -> int:
        """Rows that count."""
        return len(self.keys)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; the DataLoader calls this."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            present=self.present.pin_memory(),
            targets=None if self.targets is None else self.targets.pin_memory(),
        )

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, copied without waiting where memory is page-locked; teacher views stay."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            present=self.present.to(device, non_blocking=True),
            targets=None if self.targets is None else self.targets.to(device),
        )


def to_targets(soft_labels: SoftLabels) -> SparseTargets:
    """Return soft labels as tensors."""
    return SparseTargets(
        class_ids=to_tensor(soft_labels.class_ids), probs=to_tensor(soft_labels.probs), rest=to_tensor(soft_labels.rest)
    )


def to_tensor(array: npt.NDArray[Any]) -> Tensor:
    """Return an array as a tensor, sharing memory unless the array is read-only or strided, which torch does not take well."""
    return torch.from_numpy(array if array.flags.c_contiguous and array.flags.writeable else array.copy())


class Normalizer:
    """(pixels / 255 - mean) / std, on the device the pixels are on."""

    def __init__(self, normalization: Normalization, *, device: torch.device) -> None:
        self._mean = torch.tensor(normalization.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(normalization.std, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 [B, 3, H, W], contiguous, of uint8 [B, 3, H, W]."""
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.div_(255).sub_(self._mean).div_(self._std)
