"""Token sequences as values: end to end, without padding, with the masks that a teacher saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.errors import FormatError


def offsets_of(counts: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return int64 [n + 1], where each of n runs of so many items begins, and where the last one ends."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def spans(offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return int64, the items of some runs, run by run, in the order asked for.

    Args:
        offsets: int64 [n + 1].
        rows: int64, which runs.
    """
    counts = offsets[rows + 1] - offsets[rows]
    starts = offsets_of(counts)[:-1]
    return np.arange(int(counts.sum()), dtype=np.int64) + np.repeat(offsets[rows] - starts, counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskRows:
    """Which tokens of each sequence are masked, and what the teacher saw in their place.

    Attributes:
        offsets: int64 [sequences + 1].
        positions: int64 [masked tokens], inside their sequence, ascending in each.
        input_ids: uint32 [masked tokens].
    """

    offsets: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    input_ids: npt.NDArray[np.uint32]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """int64 [sequences], masked tokens of each."""
        return np.diff(self.offsets)

    def take(self, sequences: npt.NDArray[np.int64]) -> MaskRows:
        """Return the masks of some sequences, in the order asked for."""
        items = spans(self.offsets, sequences)
        return MaskRows(
            offsets=offsets_of(self.counts[sequences]), positions=self.positions[items], input_ids=self.input_ids[items]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRows:
    """Token sequences, end to end.

    Attributes:
        offsets: int64 [sequences + 1].
        token_ids: uint32 [tokens], what the text is.
        masks: None where the teacher saw the text as it is.
    """

    offsets: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.uint32]
    masks: MaskRows | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 [sequences], tokens of each."""
        return np.diff(self.offsets)

    def take(self, sequences: npt.NDArray[np.int64]) -> TokenRows:
        """Return some sequences, in the order asked for."""
        return TokenRows(
            offsets=offsets_of(self.lengths[sequences]),
            token_ids=self.token_ids[spans(self.offsets, sequences)],
            masks=None if self.masks is None else self.masks.take(sequences),
        )

    def masked_items(self) -> npt.NDArray[np.int64]:
        """Return int64 [masked tokens], where each of them stands in `token_ids`."""
        if self.masks is None:
            return np.zeros(0, dtype=np.int64)
        return self.masks.positions + np.repeat(self.offsets[:-1], self.masks.counts)

    def inputs(self) -> npt.NDArray[np.uint32]:
        """Return uint32 [tokens], what the teacher saw."""
        if self.masks is None:
            return self.token_ids
        seen = self.token_ids.copy()
        seen[self.masked_items()] = self.masks.input_ids
        return seen

    def check(self, *, vocabulary_size: int) -> None:
        """Refuse what is no token sequences.

        Raises:
            FormatError: an empty sequence, an id outside the vocabulary, or masked positions that leave their sequence or do not
                ascend.
        """
        lengths = self.lengths
        if len(self.token_ids) != self.offsets[-1] or (lengths < 1).any():
            raise FormatError(f"{len(self.token_ids)} tokens in sequences of {lengths.min(initial=0)} and more tokens")
        seen = [self.token_ids] if self.masks is None else [self.token_ids, self.masks.input_ids]
        largest = max(int(ids.max(initial=0)) for ids in seen)
        if largest >= vocabulary_size:
            raise FormatError(f"token id {largest} is outside the vocabulary of {vocabulary_size} tokens")
        if self.masks is None:
            return
        masks = self.masks
        if len(masks.offsets) != len(self.offsets) or len(masks.positions) != masks.offsets[-1]:
            raise FormatError(f"masks of {len(masks.offsets) - 1} sequences for {len(self)} sequences")
        if len(masks.input_ids) != len(masks.positions):
            raise FormatError(f"{len(masks.input_ids)} inputs at {len(masks.positions)} masked positions")
        steps = np.diff(masks.positions, prepend=-1)
        first = masks.offsets[:-1][masks.counts > 0]
        steps[first] = masks.positions[first] + 1
        if (steps < 1).any() or (masks.positions >= np.repeat(lengths, masks.counts)).any():
            raise FormatError("masked positions leave their sequence, or do not ascend")


def concatenate_tokens(parts: list[TokenRows]) -> TokenRows:
    """Put sequences behind each other.

    Raises:
        ValueError: no parts, or only some of them have masks.
    """
    masks = [part.masks for part in parts if part.masks is not None]
    if not parts or len(masks) not in (0, len(parts)):
        raise ValueError(f"cannot put {len(parts)} parts together of which {len(masks)} have masks")
    joined = None
    if masks:
        joined = MaskRows(
            offsets=offsets_of(np.concatenate([part.counts for part in masks])),
            positions=np.concatenate([part.positions for part in masks]),
            input_ids=np.concatenate([part.input_ids for part in masks]),
        )
    return TokenRows(
        offsets=offsets_of(np.concatenate([part.lengths for part in parts])),
        token_ids=np.concatenate([part.token_ids for part in parts]),
        masks=joined,
    )
