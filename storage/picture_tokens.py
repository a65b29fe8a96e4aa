"""How many tokens the pictures of a label set have: class tokens and patches, the same for every picture."""

from __future__ import annotations

import math

from storage.errors import MismatchError
from storage.label_set import LabelSet
from storage.specs import RelationsSpec
from storage.streams.block_reader import BlockReader


def tokens_per_picture(label_set: LabelSet) -> int:
    """Return the tokens of every picture, of a label set that has a row for each of them or for each pair. Reads one block.

    Raises:
        MismatchError: no picture has any: all are dead letters.
        CorruptError: the block is not what was committed.
    """
    reader = BlockReader(label_set)
    for view in range(label_set.manifest.num_views):
        for block_id, num_rows in enumerate(reader.places.rows(view=view).tolist()):
            if not num_rows:
                continue
            offsets = reader.block(view=view, block_id=block_id).row_offsets
            first = int(offsets[1] - offsets[0])
            if isinstance(reader.target, RelationsSpec):
                return (math.isqrt(8 * first + 1) - 1) // 2
            return first
    raise MismatchError(
        f"label set {label_set.manifest.name!r} holds no picture: all are dead letters; see decant cache show, and label again"
    )
