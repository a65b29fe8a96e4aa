"""Failures of the machine, not of the training: memory that is full, loader processes that died."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from storage.config.training import TrainingConfig
from storage.errors import DecantError

_WORKER_DIED = "DataLoader worker"
_GOES_ON = "a rerun goes on from the last checkpoint"


class ResourceError(DecantError):
    """Memory or a process that training needs is gone."""


@contextmanager
def explained_failures(training: TrainingConfig, *, num_processes: int) -> Iterator[None]:
    """Say what a person can do about a machine that gave out.

    Raises:
        ResourceError: a device has no memory left, or a loader process died.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        batch_size = f"{training.batch_size:,}"
        if num_processes > 1:
            batch_size += f", {training.batch_size // num_processes:,} in each of {num_processes} processes"
        raise ResourceError(
            f"the GPU has no memory left ({_shorten(str(error))}). Lower training.batch_size (now {batch_size}): "
            "that makes it another run, for another training.output or --restart. Or free the GPU of other processes, or lower "
            f"training.evaluation.batch_size if it was evaluating, or take a larger GPU: {_GOES_ON}"
        ) from error
    except RuntimeError as error:
        if not str(error).startswith(_WORKER_DIED):
            raise
        raise ResourceError(
            f"a loader process died ({_shorten(str(error))}). Mostly memory ran out: lower training.loader_workers (it is "
            f"{training.loader_workers}) or training.shuffle_window_blocks, or, in a container, give it more shared memory "
            f"(/dev/shm); with loader_workers too {_GOES_ON}"
        ) from error


def _shorten(text: str, *, limit: int = 240) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[:limit] + " ..."
