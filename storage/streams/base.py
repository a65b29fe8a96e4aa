"""What a trainer reads: rows of samples, each one view, with or without cached targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from storage.soft_labels import SoftLabels

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
    """

    keys: list[str]
    images: list[bytes]
    labels: npt.NDArray[np.int64]
    view_indices: npt.NDArray[np.int64]
    view_digests: npt.NDArray[np.uint64]
    soft_labels: SoftLabels | None


class RowStream(Protocol):
    """Rows in canonical blocks. Picklable: a copy in a loader process opens its own files."""

    def block_rows(self, *, epoch: int) -> npt.NDArray[np.int64]:
        """Return int64 [blocks], the rows of each block that the epoch reads, in canonical order."""

    def identity(self) -> str:
        """Return a fingerprint of the rows and their order; a checkpoint is resumed only on the same stream."""

    def read(self, *, epoch: int, block_ids: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> StreamRows:
        """Return rows by (block, row inside the block), in the order asked for.

        Raises:
            CorruptError: stored labels are not what was committed.
            MismatchError: labels and source do not hold the same samples.
            SourceError, SampleError: a picture cannot be read.
        """
