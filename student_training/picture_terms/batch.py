"""Batches of pictures with cached targets of several kinds."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from storage.alignment import rows_per_sample
from storage.errors import MismatchError
from storage.streams.aligned_rows import AlignedRows
from storage.streams.base import StreamRows
from student_training.data import PictureCollate
from student_training.left_out import LeftOut
from student_training.terms.interface import TargetRows
from student_training.terms.target_rows import to_target_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureTermBatch:
    """Pictures of one step that one process trains on; see `student_training.terms.interface.TermBatch`.

    Attributes:
        step: update, counted from 0 over all epochs.
        keys: sample keys of the rows that are present, for messages.
        images: uint8 [B, 3, H, W], the student's views; see `student_training.batch.Batch`.
        labels: int64 [B], hard labels, NO_LABEL where there is none or the row is not present.
        attention_mask: bool [B, L], True: the student's tokens, or one where it has none; False of rows that are not present.
        targets: cached targets by their names in the experiment.
        left_out: the pictures of rows that are not present.
    """

    step: int
    keys: list[str]
    images: Tensor
    labels: Tensor
    attention_mask: Tensor
    targets: dict[str, TargetRows]
    left_out: tuple[LeftOut, ...] = ()

    def __len__(self) -> int:
        """Rows that count."""
        return len(self.keys)

    def pin_memory(self) -> PictureTermBatch:
        """Return the batch in page-locked memory; the DataLoader calls this."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            attention_mask=self.attention_mask.pin_memory(),
            targets={name: rows.pin_memory() for name, rows in self.targets.items()},
        )

    def to(self, device: torch.device) -> PictureTermBatch:
        """Return the batch on a device, copied without waiting where memory is page-locked."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            targets={name: rows.to(device) for name, rows in self.targets.items()},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureTermCollate:
    """Rows of a stream to batches.

    Attributes:
        pictures: what renders and checks pictures and labels.
        num_tokens: of the student.
    """

    pictures: PictureCollate
    num_tokens: int

    def __call__(self, rows: StreamRows, *, step: int, pool: ThreadPoolExecutor | None) -> PictureTermBatch:
        """Return rows as tensors.

        Raises:
            MismatchError: labels do not fit the student, or rows of a target its tokens.
            SampleError: a picture cannot be read, and none is left out.
            ViewMismatchError: the pixels are not those of the teacher.
        """
        batch = self.pictures(rows, step=step, pool=pool)
        self._check(rows.targets)
        return PictureTermBatch(
            step=batch.step,
            keys=batch.keys,
            images=batch.images,
            labels=batch.labels,
            attention_mask=batch.present[:, None].expand(-1, max(1, self.num_tokens)).contiguous(),
            targets={name: to_target_rows(found) for name, found in rows.targets.items()},
            left_out=batch.left_out,
        )

    def _check(self, stored: Mapping[str, AlignedRows]) -> None:
        for name, rows in stored.items():
            tokens = np.full(len(rows), self.num_tokens, dtype=np.int64)
            expected = rows_per_sample(rows.target, lengths=tokens, mask_counts=None)
            if (rows.counts != expected).any():
                raise MismatchError(
                    f"target {name!r} holds {rows.counts.max()} rows of {rows.target.kind} a picture where the student's "
                    f"{self.num_tokens} tokens need {expected.max()}; remove its parts and run decant label again"
                )
