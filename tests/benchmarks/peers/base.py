"""What every re-created layout is given, and what its reader must give back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from storage.codecs import RankedLabels
from storage.samples import SampleTable

BATCH_ROWS = 1024
"""Rows a reader stacks into one tensor; like a large training batch."""


class LabelTensors(NamedTuple):
    """A batch as a loss takes it."""

    class_ids: torch.Tensor
    """int32 [rows, k]."""
    probs: torch.Tensor
    """float32 [rows, k]."""
    rest: torch.Tensor
    """float32 [rows]."""


@dataclass(frozen=True, kw_only=True)
class LayoutRows:
    """Labels to be stored: `views[v]` has one row for each sample."""

    samples: SampleTable
    views: Sequence[RankedLabels]

    @property
    def num_rows(self) -> int:
        """Rows of all views."""
        return sum(len(view) for view in self.views)

    def class_ids(self, view: int) -> npt.NDArray[np.uint16]:
        """Return uint16 [samples, k]; every peer here stores ids in 16 bits."""
        return self.views[view].class_ids.astype(np.uint16)

    def probs(self, view: int) -> npt.NDArray[np.float16]:
        """Return float16 [samples, k], as TinyViT rounds them."""
        return np.exp(self.views[view].log_probs).astype(np.float16)

    def rest(self, view: int) -> npt.NDArray[np.float16]:
        """Return float16 [samples], for layouts that store the rest."""
        return np.exp(self.views[view].log_rest).astype(np.float16)


class Layout(Protocol):
    """A way of storing sparse soft labels."""

    name: str
    stores_rest: bool
    """False: readers take 1 - sum of the stored probabilities."""

    def write(self, folder: Path, *, rows: LayoutRows) -> None:
        """Write all rows below a folder."""

    def read(self, folder: Path, *, k: int) -> Iterator[LabelTensors]:
        """Yield all rows, view by view, samples in order."""


def tensors(
    class_ids: npt.NDArray[np.integer], probs: npt.NDArray[np.floating], rest: npt.NDArray[np.floating] | None
) -> LabelTensors:
    """Return arrays of a batch in the dtypes a loss takes.

    Args:
        rest: None: what the probabilities leave, as TinyViT has it; may be below 0.
    """
    values = torch.from_numpy(probs.astype(np.float32))
    remaining = 1 - values.sum(dim=1) if rest is None else torch.from_numpy(rest.astype(np.float32))
    return LabelTensors(torch.from_numpy(class_ids.astype(np.int32)), values, remaining)


def check(layout: Layout, *, folder: Path, rows: LayoutRows) -> None:
    """Compare every row a layout reads with what was to be stored, bit for bit.

    Raises:
        AssertionError: the reader gives something else; its speed would mean nothing.
    """
    k = rows.views[0].class_ids.shape[1]
    batches = list(layout.read(folder, k=k))
    found = LabelTensors(*(torch.cat(column) for column in zip(*batches, strict=True)))
    views = range(len(rows.views))
    expected = tensors(
        np.concatenate([rows.class_ids(view) for view in views]),
        np.concatenate([rows.probs(view) for view in views]),
        np.concatenate([rows.rest(view) for view in views]) if layout.stores_rest else None,
    )
    for name, mine, theirs in zip(LabelTensors._fields, expected, found, strict=True):
        if mine.dtype != theirs.dtype or not torch.equal(mine, theirs):
            raise AssertionError(f"{layout.name}: {name} differ from what was stored")
