"""Token sequences to batches: padded on the right, numpy to torch without a Python loop a row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storage.errors import MismatchError
from storage.sources.base import NO_LABEL
from storage.streams.base import TextRows
from storage.text.token_rows import TokenRows
from student_training.batch import to_tensor
from student_training.terms.target_rows import to_target_rows
from student_training.text.interface import TextBatch

IntArray = npt.NDArray[np.int64]

_PADDING_STEP = 8
"""Widths of batches are multiples of it, which is what matrix units take best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextCollate:
    """Sequences to a batch as wide as the longest of them, rounded up.

    Attributes:
        max_length: most tokens that the student takes; no padding goes beyond it.
        num_classes: hard labels must be below it; None: they are not used.
    """

    max_length: int
    num_classes: int | None = None

    def __call__(self, rows: TextRows, *, step: int, pool: ThreadPoolExecutor | None) -> TextBatch:
        """Return rows as tensors.

        Raises:
            MismatchError: a hard label does not fit the student.
        """
        del pool
        self._check_labels(rows)
        tokens = rows.tokens
        longest = int(tokens.lengths.max())
        width = max(longest, min(-(-longest // _PADDING_STEP) * _PADDING_STEP, self.max_length))
        places = _places(tokens, width=width)
        token_ids = _padded(tokens.token_ids, places=places, num_sequences=len(tokens), width=width)
        inputs = token_ids
        if tokens.masks is not None:
            inputs = _padded(tokens.inputs(), places=places, num_sequences=len(tokens), width=width)
        return TextBatch(
            step=step,
            keys=rows.keys,
            input_ids=inputs,
            token_ids=token_ids,
            attention_mask=to_tensor(np.arange(width) < tokens.lengths[:, None]),
            masked=None if tokens.masks is None else _masked(tokens, places=places, width=width),
            labels=to_tensor(rows.labels),
            targets={
                name: to_target_rows(stored, masked_positions=None if tokens.masks is None else tokens.masks.positions)
                for name, stored in rows.targets.items()
            },
        )

    def _check_labels(self, rows: TextRows) -> None:
        if self.num_classes is not None and rows.labels.max(initial=NO_LABEL) >= self.num_classes:
            worst = int(np.argmax(rows.labels))
            raise MismatchError(
                f"text {rows.keys[worst]!r} has label {rows.labels[worst]} but the student has {self.num_classes} classes (0 to "
                f"{self.num_classes - 1}); raise training.student.num_classes, or check the source's labels"
            )


def _places(tokens: TokenRows, *, width: int) -> IntArray:
    """Return int64 [tokens], where each of them goes in a flattened [sequences, width]."""
    starts = np.arange(len(tokens), dtype=np.int64) * width - tokens.offsets[:-1]
    return np.arange(len(tokens.token_ids), dtype=np.int64) + np.repeat(starts, tokens.lengths)


def _padded(ids: npt.NDArray[np.uint32], *, places: IntArray, num_sequences: int, width: int) -> Tensor:
    """Return int64 [sequences, width] with id 0 as padding: any id of the vocabulary serves, since none is looked at."""
    padded = np.zeros(num_sequences * width, dtype=np.int64)
    padded[places] = ids
    return torch.from_numpy(padded.reshape(num_sequences, width))


def _masked(tokens: TokenRows, *, places: IntArray, width: int) -> Tensor:
    masked = np.zeros(len(tokens) * width, dtype=np.bool_)
    masked[places[tokens.masked_items()]] = True
    return torch.from_numpy(masked.reshape(len(tokens), width))
