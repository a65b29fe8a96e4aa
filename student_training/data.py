"""From a row stream to batches: a dataset of whole batches, so that order is the same for any number of workers and processes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from storage.errors import DecantError, MismatchError
from storage.order import EpochOrder
from storage.streams.base import RowStream, StreamRows
from storage.streams.length_groups import LengthGroups
from student_training.batch import Batch
from student_training.plan import StepPlan
from student_training.rendering import Renderer

T = TypeVar("T")
R = TypeVar("R")
B = TypeVar("B")
R_contra = TypeVar("R_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Which process of how many.

    Attributes:
        rank: this process.
        world_size: processes that share each batch.
    """

    rank: int = 0
    world_size: int = 1


class StreamLengths(Protocol):
    """The method of a stream of texts that tells how long sequences are."""

    def __call__(self, *, epoch: int, block_ids: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return int64, the length of each row."""


class Collate(Protocol[R_contra, B_co]):
    """Makes batches of rows. Picklable; called in loader processes."""

    def __call__(self, rows: R_contra, *, step: int, pool: ThreadPoolExecutor | None) -> B_co:
        """Return rows as tensors, checked.

        Args:
            rows: of one step and one process.
            step: update, counted from 0 over all epochs.
            pool: threads to work in; None: this one.

        Raises:
            DecantError: rows cannot be used as they are.
        """


class BatchDataset(IterableDataset["B | DecantError"], Generic[R, B]):
    """Batches of steps [start, stop) for one process; worker w of W makes every W-th of them, and the DataLoader takes turns.

    An error a user should read ends the iteration as its last item: the DataLoader would bury its message in a traceback.
    """

    def __init__(
        self,
        stream: RowStream[R],
        *,
        plan: StepPlan,
        collate: Collate[R, B],
        seed: int,
        window_blocks: int,
        start: int = 0,
        share: Share | None = None,
        num_threads: int = 1,
        lengths: StreamLengths | None = None,
    ) -> None:
        """Describe the batches; nothing is read yet.

        Args:
            stream: the rows.
            plan: which rows each step reads.
            collate: how rows become tensors.
            seed: of the order.
            window_blocks: blocks that are mixed with each other; 0: canonical order.
            start: first step.
            share: this process's part of every batch; None: all of it.
            num_threads: threads that collate, in each worker.
            lengths: of the stream; given, rows of like length come in one batch.
        """
        super().__init__()
        self._stream = stream
        self._plan = plan
        self._collate = collate
        self._seed = seed
        self._window_blocks = window_blocks
        self._start = start
        self._share = share or Share()
        self._num_threads = num_threads
        self._lengths = lengths

    def __iter__(self) -> Iterator[B | DecantError]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        order: EpochOrder | LengthGroups | None = None
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self._num_threads)) if self._num_threads > 1 else None
            for step in range(self._start + first, self._plan.num_steps, stride):
                epoch, start, stop = self._plan.rows(step, rank=self._share.rank, world_size=self._share.world_size)
                if start == stop:  # a small last batch of an evaluation may have no row for this process
                    continue
                try:
                    if order is None or order.epoch != epoch:
                        order = self._order(epoch)
                    block_ids, block_rows = order.slice(start, stop)
                    rows = self._stream.read(epoch=epoch, block_ids=block_ids, rows=block_rows)
                    yield self._collate(rows, step=step, pool=pool)
                except DecantError as error:
                    yield error
                    return

    def _order(self, epoch: int) -> EpochOrder | LengthGroups:
        order = EpochOrder(
            block_rows=self._stream.block_rows(epoch=epoch), seed=self._seed, epoch=epoch, window_blocks=self._window_blocks
        )
        lengths = self._lengths
        if lengths is None:
            return order
        return LengthGroups(
            order,
            batch_size=self._plan.batch_size,
            lengths=lambda block_ids, rows: lengths(epoch=epoch, block_ids=block_ids, rows=rows),
        )


class StepDataset(BatchDataset[StreamRows, Batch]):
    """Batches of pictures."""

    def __init__(
        self,
        stream: RowStream[StreamRows],
        *,
        renderer: Renderer,
        num_classes: int | None = None,
        kind: Literal["cached", "hard", "live"] = "hard",
        uses_labels: bool = False,
        **order: Any,
    ) -> None:
        """Describe the batches; nothing is read yet.

        Args:
            stream: the rows.
            renderer: how rows become pixels.
            num_classes: classes of the student; None: not checked.
            kind: where targets come from; rows of a cached one must have soft labels.
            uses_labels: whether hard labels are used, and must be below `num_classes`.
            order: plan, seed, window_blocks, start, share, num_threads; see `BatchDataset`.
        """
        collate = PictureCollate(renderer=renderer, num_classes=num_classes, kind=kind, uses_labels=uses_labels)
        super().__init__(stream, collate=collate, **order)


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureCollate:
    """Pictures to batches, labels checked; see `StepDataset`."""

    renderer: Renderer
    num_classes: int | None
    kind: Literal["cached", "hard", "live"]
    uses_labels: bool

    def __call__(self, rows: StreamRows, *, step: int, pool: ThreadPoolExecutor | None) -> Batch:
        """Return rows as tensors.

        Raises:
            MismatchError: labels do not fit the student.
            SampleError: a picture cannot be read, and none is left out.
            ViewMismatchError: the pixels are not those of the teacher.
        """
        self._check(rows)
        return self.renderer.render_rows(rows, step=step, pool=pool)

    def _check(self, rows: StreamRows) -> None:
        if self.kind == "cached" and rows.soft_labels is None:
            raise MismatchError(
                "training.targets.kind is cached but the rows hold no soft labels; train from a label set, or set kind: hard"
            )
        if self.num_classes is None:
            return
        if rows.soft_labels is not None and rows.soft_labels.num_classes != self.num_classes:
            raise MismatchError(
                f"the stored labels are over {rows.soft_labels.num_classes} classes and the student has {self.num_classes}; "
                "leave training.student.num_classes out, or choose another label set"
            )
        if self.uses_labels and rows.labels.max(initial=0) >= self.num_classes:
            worst = int(np.argmax(rows.labels))
            raise MismatchError(
                f"sample {rows.keys[worst]!r} has label {rows.labels[worst]} but the student has {self.num_classes} classes "
                f"(0 to {self.num_classes - 1}); raise training.student.num_classes, or check the source's labels"
            )


def load_batches(
    dataset: BatchDataset[R, B], *, workers: int, pin_memory: bool = False, start_method: str | None = None
) -> Generator[B, None, None]:
    """Yield the dataset's batches in step order, made ahead of time by loader processes.

    Never touches torch's global random state, so that reading does not change what dropout draws.

    Args:
        dataset: the batches.
        workers: loader processes; 0: this one.
        pin_memory: copy batches to page-locked memory, for a GPU.
        start_method: how loader processes start (`fork`, `spawn`, ...); None: the platform's way.

    Raises:
        DecantError: what went wrong in a loader process, as it was raised there.
    """
    loader: DataLoader[B | DecantError] = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_keep,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
        multiprocessing_context=start_method if workers else None,
    )
    for item in loader:
        if isinstance(item, DecantError):
            raise item
        yield item


def _keep(item: T) -> T:
    return item
