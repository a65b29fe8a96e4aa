"""Sequences to teacher batches: sorted by length inside a window of a unit, so that little is padded and memory stays flat.

Which batch a sequence is in depends on the unit, the view and `generation.batch_size`, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.text.token_rows import TokenRows

_BATCHES_A_WINDOW = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBatch:
    """A padded batch.

    Attributes:
        sequences: int64 [batch], which sequences of the window it holds.
        token_ids: uint32 [batch, tokens], what the teacher sees; 0 behind a sequence.
        tokens: the sequences.
        keys: of the sequences.
    """

    sequences: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.uint32]
    tokens: TokenRows
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 [batch], tokens of each row."""
        return self.tokens.lengths


def windows(bounds: npt.NDArray[np.int64], *, batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Return the bounds of blocks that are labelled together, as few as fill some batches.

    Args:
        bounds: int64 [blocks + 1], of all blocks of a unit.
    """
    found, first = [], 0
    while first + 1 < len(bounds):
        end = int(np.searchsorted(bounds, bounds[first] + _BATCHES_A_WINDOW * batch_size))
        end = min(max(end, first + 1), len(bounds) - 1)
        found.append(bounds[first : end + 1])
        first = end
    return found


def batches(window: TokenRows, *, keys: tuple[str, ...], batch_size: int) -> Iterator[TextBatch]:
    """Yield a window's sequences in padded batches, the longest first, so that what does not fit fails at once.

    Args:
        keys: a key for each sequence.
    """
    order = np.argsort(-window.lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        sequences = order[first : first + batch_size]
        tokens = window.take(sequences)
        yield TextBatch(
            sequences=sequences,
            token_ids=pad(tokens, num_rows=len(sequences)),
            tokens=tokens,
            keys=tuple(keys[index] for index in sequences.tolist()),
        )


def pad(tokens: TokenRows, *, num_rows: int) -> npt.NDArray[np.uint32]:
    """Return uint32 [rows, longest], what a teacher sees of sequences, 0 behind each and in rows that only pad."""
    lengths = tokens.lengths
    padded = np.zeros((num_rows, int(lengths.max(initial=1))), dtype=np.uint32)
    rows = np.repeat(np.arange(len(tokens)), lengths)
    places = np.arange(len(tokens.token_ids)) - np.repeat(tokens.offsets[:-1], lengths)
    padded[rows, places] = tokens.inputs()
    return padded
