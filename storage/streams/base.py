"""What a trainer reads: rows of samples, each one view, with or without cached targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from storage.soft_labels import SoftLabels
from storage.streams.aligned_rows import AlignedRows
from storage.text.token_rows import TokenRows

R_co = TypeVar("R_co", covariant=True)

NO_DIGEST = 0
"""View digest of a row whose view is not checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamRows:
    """Some rows of a stream, ready to be rendered.

    Attributes:
        keys: sample keys.
        images: the stored picture bytes, not decoded.
        labels: int64 [rows], hard labels, NO_LABEL where there is none.
        view_indices: int64 [rows], which view of the sample each row is.
        view_digests: uint64 [rows], `storage.views.view_digest` of the pixels the teacher saw, NO_DIGEST where not stored.
        soft_labels: the cached targets; None from a source alone.
        targets: further cached targets of the same views, by their names in the experiment.
        unreadable: why the source gave no picture of a row, by row; `images` holds no bytes there.
    """

    keys: list[str]
    images: list[bytes]
    labels: npt.NDArray[np.int64]
    view_indices: npt.NDArray[np.int64]
    view_digests: npt.NDArray[np.uint64]
    soft_labels: SoftLabels | None
    targets: Mapping[str, AlignedRows] = field(default_factory=dict)
    unreadable: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRows:
    """Some rows of a stream of texts, ready to be padded: a row is a token sequence.

    Attributes:
        keys: sample keys.
        tokens: the sequences, with what the teacher saw in them.
        labels: int64 [rows], hard labels, NO_LABEL where there is none.
        targets: cached targets by their names in the experiment; empty from a source alone.
    """

    keys: list[str]
    tokens: TokenRows
    labels: npt.NDArray[np.int64]
    targets: Mapping[str, AlignedRows]


class BlockStream(Protocol):
    """Rows in canonical blocks, whatever a row is."""

    def block_rows(self, *, epoch: int) -> npt.NDArray[np.int64]:
        """Return int64 [blocks], the rows of each block that the epoch reads, in canonical order."""

    def identity(self) -> str:
        """Return a fingerprint of the rows and their order; a checkpoint is resumed only on the same stream."""


class RowStream(BlockStream, Protocol[R_co]):
    """Rows in canonical blocks, read as `StreamRows` or `TextRows`. Picklable: a copy in a loader process opens its own files."""

    def read(self, *, epoch: int, block_ids: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> R_co:
        """Return rows by (block, row inside the block), in the order asked for.

        Raises:
            CorruptError: stored labels are not what was committed.
            MismatchError: labels and source, or label sets that are joined, do not hold the same samples.
            SourceError, SampleError: a sample cannot be read.
        """


class TextStream(RowStream[TextRows], Protocol):
    """Token sequences in canonical blocks."""

    def lengths(self, *, epoch: int, block_ids: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return int64, the tokens of each sequence, as `read` would give them."""
