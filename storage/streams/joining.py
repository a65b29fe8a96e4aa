"""Whether label sets are of the same samples, seen the same way, in the same blocks: the condition for reading them as one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.errors import MismatchError
from storage.streams.block_reader import BlockReader
from storage.target_blocks import TargetBlock
from storage.text.token_rows import TokenRows


def require_same_views(first: BlockReader, other: BlockReader, *, names: tuple[str, str]) -> None:
    """Refuse label sets of other views.

    Args:
        names: of their targets in the experiment.

    Raises:
        MismatchError: views differ; every field that does, with both values.
    """
    mine, theirs = (
        reader.label_set.manifest.request.view.to_json() | {"count": reader.label_set.manifest.num_views}
        for reader in (first, other)
    )
    differing = [
        f"view.{field}: {mine.get(field, 'not there')!r} in {_named(first, names[0])}, {theirs.get(field, 'not there')!r} in "
        f"{_named(other, names[1])}"
        for field in sorted(mine.keys() | theirs.keys())
        if mine.get(field) != theirs.get(field)
    ]
    if differing:
        raise MismatchError(
            "label sets of other views cannot be joined:\n  "
            + "\n  ".join(differing)
            + "\nName label sets of the same views in training.targets, or run decant label with one config for both"
        )


def require_same_blocks(first: BlockReader, other: BlockReader, *, names: tuple[str, str], num_views: int) -> None:
    """Refuse label sets whose blocks do not cover the same samples of the same units.

    Raises:
        MismatchError: they do not; the first unit that differs.
    """
    units = unit_codes(first, other)
    for view in range(num_views):
        mine, theirs = (reader.places.spans(view=view) for reader in (first, other))
        keyed = [np.column_stack([codes[spans[:, 0]], spans[:, 1:]]) for codes, spans in zip(units, (mine, theirs), strict=True)]
        shared = min(len(mine), len(theirs))
        differing = np.flatnonzero((keyed[0][:shared] != keyed[1][:shared]).any(axis=1))
        if not len(differing) and len(mine) == len(theirs):
            continue
        block = int(differing[0]) if len(differing) else shared
        raise MismatchError(
            f"{_named(first, names[0])} and {_named(other, names[1])} are not of the same samples: block {block} of view {view} "
            f"is {_block_words(first, mine, block)} in the one, {_block_words(other, theirs, block)} in the other. "
            "Run decant label for both targets over the same source"
        )


def require_same_samples(
    first: BlockReader,
    other: BlockReader,
    *,
    names: tuple[str, str],
    units: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    num_views: int,
) -> None:
    """Refuse label sets that are not of the same units, whatever blocks these are stored in.

    Args:
        units: of both, as `unit_codes` gives them.

    Raises:
        MismatchError: they are not; the first unit that differs.
    """
    num_units = int(max(codes.max(initial=-1) for codes in units)) + 1
    for view in range(num_views):
        totals = [
            np.bincount(codes[spans[:, 0]], weights=spans[:, 2], minlength=num_units)
            for codes, spans in zip(units, (reader.places.spans(view=view) for reader in (first, other)), strict=True)
        ]
        differing = np.flatnonzero(totals[0] != totals[1])
        if len(differing):
            unit = int(differing[0])
            holder = 0 if (units[0] == unit).any() else 1
            name = (first, other)[holder].unit_name(int(np.flatnonzero(units[holder] == unit)[0]))
            raise MismatchError(
                f"{_named(first, names[0])} and {_named(other, names[1])} are not of the same samples: of unit {name!r}, view "
                f"{view}, the one covers {totals[0][unit]:.0f} samples, the other {totals[1][unit]:.0f}. Run decant label for "
                "both targets over the same source"
            )


def unit_codes(*readers: BlockReader) -> list[npt.NDArray[np.int64]]:
    """Return, for each label set, int64 [parts], numbers that are equal where unit contents are."""
    columns = [reader.label_set.parts.column("unit_digest") for reader in readers]
    encoded = pa.chunked_array([chunk for column in columns for chunk in column.chunks], type=pa.string()).combine_chunks()
    codes = encoded.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.split(codes, np.cumsum([len(column) for column in columns])[:-1])


def _named(reader: BlockReader, name: str) -> str:
    return f"{name} (label set {reader.label_set.manifest.name!r})"


def _block_words(reader: BlockReader, spans: npt.NDArray[np.int64], block: int) -> str:
    if block >= len(spans):
        return "not there"
    part, first, count = spans[block].tolist()
    content = reader.label_set.parts.column("unit_digest")[part].as_py()
    return f"samples {first} to {first + count - 1} of unit {reader.unit_name(part)!r} (content {content[:12]})"


def require_same_tokens(blocks: dict[str, TargetBlock], *, chosen: dict[str, npt.NDArray[np.int64]], unit_name: str) -> None:
    """Refuse blocks that do not hold the same samples and tokens.

    Args:
        blocks: by target, over the same span of samples.
        chosen: of each, int64, the sequences that all blocks hold.

    Raises:
        MismatchError: keys or tokens differ; the unit and the field.
    """
    (first_name, first), *others = blocks.items()
    if not others:
        return
    expected = None if first.tokens is None else first.tokens.take(chosen[first_name])
    for name, block in others:
        field = None
        found = None if block.tokens is None else block.tokens.take(chosen[name])
        if block.key_hash != first.key_hash:
            field = "sample keys"
        elif (expected is None) != (found is None):
            field = "the kind of samples"
        elif expected is not None and found is not None:
            field = _differing(expected, found)
        if field is not None:
            raise MismatchError(
                f"unit {unit_name!r}: {field} of samples {first.first_sample} to {first.first_sample + first.num_samples - 1} "
                f"differ between targets {first_name!r} and {name!r}, though source and views are the same; remove the parts of "
                "one of them and run decant label again"
            )


def _differing(mine: TokenRows, theirs: TokenRows) -> str | None:
    if not np.array_equal(mine.offsets, theirs.offsets) or not np.array_equal(mine.token_ids, theirs.token_ids):
        return "token ids"
    if mine.masks is None or theirs.masks is None:
        return None if mine.masks is theirs.masks else "masks"
    for name in ("offsets", "positions", "input_ids"):
        if not np.array_equal(getattr(mine.masks, name), getattr(theirs.masks, name)):
            return f"masks ({name})"
    return None
