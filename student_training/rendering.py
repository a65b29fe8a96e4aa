"""Rows of a stream to tensors: decode, render the view the teacher saw, and prove it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from storage.errors import SampleError, ViewMismatchError
from storage.images import decode_image
from storage.sources.base import NO_LABEL
from storage.specs import Size, ViewSpec
from storage.streams.base import NO_DIGEST, StreamRows
from storage.views import draw_view_params, render, view_digest
from student_training.batch import Batch, to_targets, to_tensor
from student_training.left_out import LeftOut

_MAX_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Renderer:
    """What the student and a live teacher see of a row.

    Attributes:
        view: the views, at the teacher's size.
        size: height and width of the student's input; the same field of view is rendered at it.
        max_pixels: larger pictures are refused.
        keep_teacher_views: whether batches hold the views at the teacher's size, too.
        leaves_out: whether a batch goes without pictures that cannot be read. Where a teacher has labelled them they could be
            read, and that they cannot now is an error.
    """

    view: ViewSpec
    size: Size
    max_pixels: int
    keep_teacher_views: bool = False
    leaves_out: bool = False

    def render_rows(self, rows: StreamRows, *, step: int, pool: ThreadPoolExecutor | None) -> Batch:
        """Return the rows as tensors; rows with a view digest are compared with what the teacher saw.

        Raises:
            SampleError: a picture cannot be read, and none is left out.
            ViewMismatchError: the pixels are not those of the teacher.
        """
        images = np.empty((len(rows.keys), *self.size, 3), dtype=np.uint8)
        keep_apart = self.keep_teacher_views and self.view.size != self.size
        teacher_views = np.empty((len(rows.keys), *self.view.size, 3), dtype=np.uint8) if keep_apart else None

        def render_into(row: int) -> LeftOut | None:
            return self._try_row(rows, row=row, images=images, teacher_views=teacher_views)

        numbers = range(len(rows.keys))
        found = list(map(render_into, numbers) if pool is None else pool.map(render_into, numbers))
        present = np.array([left_out is None for left_out in found])
        _fill_places(images, present=present)
        if teacher_views is not None:
            _fill_places(teacher_views, present=present)
        student_views = torch.from_numpy(images)
        kept_views = student_views if teacher_views is None else torch.from_numpy(teacher_views)
        return Batch(
            step=step,
            keys=[key for key, left_out in zip(rows.keys, found, strict=True) if left_out is None],
            images=student_views.permute(0, 3, 1, 2),
            labels=to_tensor(np.where(present, rows.labels, NO_LABEL)),
            targets=None if rows.soft_labels is None else to_targets(rows.soft_labels),
            teacher_views=kept_views if self.keep_teacher_views else None,
            present=torch.from_numpy(present),
            left_out=tuple(left_out for left_out in found if left_out is not None),
        )

    def _try_row(
        self, rows: StreamRows, *, row: int, images: npt.NDArray[np.uint8], teacher_views: npt.NDArray[np.uint8] | None
    ) -> LeftOut | None:
        """Render a row; return what is wrong with its picture where it can be left out."""
        key = rows.keys[row]
        stage: Literal["read", "decode"] = "read" if row in rows.unreadable else "decode"
        try:
            if row in rows.unreadable:
                raise SampleError(rows.unreadable[row])
            self._render_row(rows, row=row, images=images, teacher_views=teacher_views)
        except SampleError as error:
            if not self.leaves_out:
                raise SampleError(
                    f"sample {key!r}, view {rows.view_indices[row]}: {error}; the teacher could read it when it was labelled, so "
                    "put the picture back as it was: a rerun goes on from the last checkpoint"
                ) from error
            return LeftOut(key=key, stage=stage, reason=str(error))
        return None

    def _render_row(
        self, rows: StreamRows, *, row: int, images: npt.NDArray[np.uint8], teacher_views: npt.NDArray[np.uint8] | None
    ) -> None:
        key, view_index, digest = rows.keys[row], int(rows.view_indices[row]), int(rows.view_digests[row])
        image = decode_image(rows.images[row], max_pixels=self.max_pixels)
        params = draw_view_params(self.view, key=key, view_index=view_index, width=image.width, height=image.height)
        same_size = self.size == self.view.size
        if same_size or digest != NO_DIGEST or teacher_views is not None:
            pixels = render(image, params, interpolation=self.view.interpolation)
            if digest != NO_DIGEST and view_digest(pixels) != digest:
                raise ViewMismatchError(
                    f"sample {key!r}, view {view_index}: the student rendered pixels with digest {view_digest(pixels):016x} "
                    f"but the teacher saw {digest:016x}, so the label is not one of this view. The source's pictures changed, or "
                    "Pillow decodes or resizes otherwise here: restore the source, install the Pillow version that the labels "
                    "record, or label again"
                )
            if teacher_views is not None:
                teacher_views[row] = pixels
            if same_size:
                images[row] = pixels
        if not same_size:
            images[row] = render(image, params, size=self.size, interpolation=self.view.interpolation)


def _fill_places(pixels: npt.NDArray[np.uint8], *, present: npt.NDArray[np.bool_]) -> None:
    """Put a picture of the batch where one could not be read: black ones would move the statistics of batch norm."""
    if not present.all():
        pixels[~present] = pixels[present.argmax()] if present.any() else 0


def num_decode_threads(*, loader_workers: int, local_processes: int) -> int:
    """Return the threads with which one process decodes; Pillow releases the interpreter lock while it works."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(_MAX_THREADS, cores // (max(1, loader_workers) * local_processes)))
