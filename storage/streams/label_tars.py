"""Which tars a stream of cached targets reads. A label set's id says which labels it holds; its tars say how they lie in blocks.

A part that was made anew, for dead letters that have a label now or in place of a damaged one, may be cut into other blocks. The
label set keeps its id then, and the same position in the stream is another row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from storage.label_set import LabelSet

_PARTS_AT_A_TIME = 65_536


@runtime_checkable
class ReadsLabelSets(Protocol):
    """A stream of cached targets."""

    def label_tars(self) -> dict[str, dict[str, str]]:
        """Return, by the ids of the label sets that are read, the `name` of each and the digest `tars` of its tars."""


def label_tars(label_sets: Iterable[LabelSet]) -> dict[str, dict[str, str]]:
    """Return what `ReadsLabelSets.label_tars` says of some label sets that were opened."""
    return {one.manifest.id: {"name": one.manifest.name, "tars": _digest_of_tars(one)} for one in label_sets}


def _digest_of_tars(label_set: LabelSet) -> str:
    # Not the table's own digest: its bytes are also those of the library that wrote it.
    hashed = hashlib.sha256()
    for batch in label_set.parts.select(["tar_sha256"]).to_batches(max_chunksize=_PARTS_AT_A_TIME):
        hashed.update("".join(batch.column(0).to_pylist()).encode())
    return hashed.hexdigest()
