"""Is every byte of a label set what was committed?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from storage.errors import CacheError
from storage.hashing import key_hash
from storage.label_blocks import decode_label_block
from storage.label_set import LabelSet
from storage.parts import BlockExtent, Extent, check_extent
from storage.samples import SampleTable, decode_samples

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What verifying found.

    Attributes:
        problems: one line each, with the file's name; empty when everything is right.
    """

    num_parts: int
    num_blocks: int
    num_rows: int
    num_bytes: int
    problems: tuple[str, ...]


def verify(label_set: LabelSet, *, quick: bool = False, on_progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Check a label set against its manifest, which was checked when it was opened.

    Quick: sizes only. Otherwise every part is read once: its sha256, every block's checksum and structure, every distribution,
    row counts, and key hashes against the part's own sample table.
    """
    problems: list[str] = []
    num_blocks = num_rows = num_bytes = 0
    table = label_set.parts
    try:
        label_set.class_means()
    except (CacheError, FileNotFoundError) as error:
        problems.append(str(error))
    for index in range(table.num_rows):
        part = {name: table.column(name)[index].as_py() for name in table.column_names}
        path = label_set.tar_path(part["tar_name"])
        origin = f"{label_set.cache.store.url}/{path}"
        blocks = [BlockExtent(**block) for block in part["blocks"]]
        try:
            size = label_set.cache.store.size(path)
            if size != part["tar_bytes"]:
                problems.append(f"{origin}: {size} bytes, committed were {part['tar_bytes']}")
                continue
            if not quick:
                _verify_part(label_set, path=path, sha256=part["tar_sha256"], samples=Extent(**part["samples"]), blocks=blocks)
        except FileNotFoundError:
            problems.append(f"{origin}: missing")
        except CacheError as error:
            problems.append(str(error))
        num_blocks += len(blocks)
        num_rows += sum(block.num_rows for block in blocks)
        num_bytes += part["tar_bytes"]
        if on_progress is not None:
            on_progress(index + 1, table.num_rows)
    if num_rows != label_set.manifest.num_rows and not problems:
        problems.append(f"{label_set.manifest.id}: {num_rows} rows are listed, the manifest says {label_set.manifest.num_rows}")
    return VerifyReport(
        num_parts=table.num_rows, num_blocks=num_blocks, num_rows=num_rows, num_bytes=num_bytes, problems=tuple(problems)
    )


def _verify_part(label_set: LabelSet, *, path: str, sha256: str, samples: Extent, blocks: list[BlockExtent]) -> None:
    store = label_set.cache.store
    origin = f"{store.url}/{path}"
    hasher = hashlib.sha256()
    start = 0
    while chunk := store.read_range(path, start=start, num_bytes=_CHUNK_BYTES):
        hasher.update(chunk)
        start += len(chunk)
    if hasher.hexdigest() != sha256:
        raise CacheError(f"{origin}: sha256 is {hasher.hexdigest()[:16]}, committed was {sha256[:16]}")
    table = _samples(label_set, path=path, extent=samples)
    for extent in blocks:
        data = store.read_range(path, start=extent.offset, num_bytes=extent.num_bytes)
        check_extent(data, extent, origin=origin)
        block = decode_label_block(data, origin=origin)
        keys = table.keys[block.first_sample : block.first_sample + block.num_samples]
        if key_hash(keys) != block.key_hash:
            raise CacheError(f"{origin}: the block at {extent.offset} is of other samples than the part's table")
        if (block.view, len(block.soft_labels)) != (extent.view, extent.num_rows):
            raise CacheError(f"{origin}: the block at {extent.offset} holds {len(block.soft_labels)} rows of view {block.view}")
        sums = block.soft_labels.probs.sum(axis=1, dtype="f8") + block.soft_labels.rest
        if len(sums) and abs(sums - 1).max() > 1e-4:
            raise CacheError(f"{origin}: a row of the block at {extent.offset} sums to {sums[abs(sums - 1).argmax()]}")


def _samples(label_set: LabelSet, *, path: str, extent: Extent) -> SampleTable:
    return decode_samples(label_set.cache.read_extent(path, extent), origin=f"{label_set.cache.store.url}/{path}")
