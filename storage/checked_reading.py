"""Blocks of a label set as readers take them: the first that is not what was committed ends in an error with what mends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from storage.errors import CorruptError, FormatError, NewerReleaseError
from storage.hashing import key_hash
from storage.label_blocks import LabelBlock
from storage.label_set import LabelSet
from storage.narrowing import why_not_narrower
from storage.parts import Extent
from storage.samples import SampleTable, decode_samples
from storage.specs import TargetSpec
from storage.target_blocks import TargetBlock

_Decoded = TypeVar("_Decoded")


def _where(label_set: LabelSet, *, part: int, extent: Extent) -> str:
    return f"{label_set.cache.store.url}/{label_set.tar_path(part)}: the block at {extent.offset}"


def read_block(label_set: LabelSet, *, part: int, extent: Extent, decode: Callable[..., _Decoded]) -> _Decoded:
    """Return a decoded block.

    Args:
        part: a row of the table of parts.
        decode: takes the bytes of a block, and its `origin` for messages.

    Raises:
        CorruptError: the tar is missing, too short, or holds other bytes than were committed.
        FormatError: these are no such block.
    """
    data = label_set.read_extent(label_set.tar_path(part), extent)
    try:
        return decode(data, origin=_where(label_set, part=part, extent=extent))
    except NewerReleaseError:
        raise
    except FormatError as error:
        raise FormatError(f"{error}; {label_set.mend}") from error


def read_samples(label_set: LabelSet, *, part: int) -> SampleTable:
    """Return keys and hard labels of a part's samples.

    Args:
        part: a row of the table of parts.

    Raises:
        CorruptError: see `read_block`; or the label set says that there are more or fewer.
    """
    extent = Extent(**label_set.parts.column("samples")[part].as_py())
    table = read_block(label_set, part=part, extent=extent, decode=decode_samples)
    num_samples = label_set.parts.column("num_samples")[part].as_py()
    if len(table.keys) != num_samples:
        raise CorruptError(
            f"{_where(label_set, part=part, extent=extent)} lists {len(table.keys)} samples, the label set says {num_samples}; "
            f"{label_set.mend}"
        )
    return table


def check_block(
    label_set: LabelSet,
    block: LabelBlock | TargetBlock,
    *,
    part: int,
    extent: Extent,
    said: tuple[int, int, int, int],
    target: TargetSpec,
) -> None:
    """Refuse a block of other rows than the label set says.

    Args:
        said: of the block: view, first sample, samples covered, rows.
        target: what its rows are narrowed to.

    Raises:
        CorruptError: it is of another view, other samples, or other labels.
    """
    found = (block.view, block.first_sample, block.num_samples, len(block.positions))
    if found != said:
        raise CorruptError(
            f"{_where(label_set, part=part, extent=extent)} is (view, first sample, samples, rows) {found}, the label set says "
            f"{said}; {label_set.mend}"
        )
    reason = None if block.target == target else why_not_narrower(block.target, asked=target)
    if reason is not None:
        # The part is what its own request says; this label set should not name it.
        raise CorruptError(f"{_where(label_set, part=part, extent=extent)} is of other labels: {reason}; {label_set.again}")


def check_keys(label_set: LabelSet, block: LabelBlock | TargetBlock, *, part: int, extent: Extent, table: SampleTable) -> None:
    """Refuse a block that is of other samples than its part lists.

    Raises:
        CorruptError: it is.
    """
    keys = table.keys[block.first_sample : block.first_sample + block.num_samples]
    if key_hash(keys) != block.key_hash:
        listed = f"the samples {keys[0]!r} to {keys[-1]!r}" if keys else "samples"
        raise CorruptError(
            f"{_where(label_set, part=part, extent=extent)} is not of {listed} that its part lists; {label_set.mend}"
        )
