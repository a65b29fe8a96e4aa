"""Is every byte of a label set what was committed?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow.compute as pc

from storage.cache import Cache
from storage.errors import CacheError, CorruptError
from storage.hashing import key_hash
from storage.label_blocks import LabelBlock, decode_label_block
from storage.label_set import LabelSet
from storage.parts import BlockExtent, Extent, PartRecord
from storage.remedies import are_imported
from storage.samples import decode_samples
from storage.soft_labels import SoftLabels
from storage.specs import HiddenStatesSpec, MaskedTokensView, RequestSpec, SoftLabelsSpec, TokensView
from storage.target_blocks import TargetBlock, decode_target_block

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
    row counts, and key hashes against the part's own sample table; the request and the part records, which say what need not be
    computed again; and the teacher's head, where there is one.
    """
    cache, table = label_set.cache, label_set.parts
    problems = _problems(label_set.class_means) if label_set.manifest.class_means_file is not None else []
    if not quick:
        for request in sorted({label_set.manifest.request.fingerprint(), *pc.unique(table.column("request")).to_pylist()}):
            problems += _problems(partial(cache.request, request))
        target = label_set.manifest.request.target
        if isinstance(target, HiddenStatesSpec) and target.head_sha256 is not None:
            problems += _problems(partial(cache.head, target.head_sha256))
    num_blocks = num_rows = num_bytes = 0
    for index in range(table.num_rows):
        part = {name: table.column(name)[index].as_py() for name in table.column_names}
        path = label_set.tar_path(index)
        blocks = [BlockExtent(**block) for block in part["blocks"]]
        if not quick:
            problems += _problems(partial(_verify_record, cache, path=path, tar_sha256=part["tar_sha256"]))
        size = {"path": path, "num_bytes": part["tar_bytes"]}
        if quick:
            problems += _problems(partial(_verify_size, cache, **size))
        else:
            samples = Extent(**part["samples"])
            problems += _problems(
                partial(
                    _verify_part,
                    cache,
                    **size,
                    tar_sha256=part["tar_sha256"],
                    num_samples=part["num_samples"],
                    samples=samples,
                    blocks=blocks,
                    request=label_set.manifest.request,
                )
            )
        num_blocks += len(blocks)
        num_rows += sum(block.num_rows for block in blocks)
        num_bytes += part["tar_bytes"]
        if on_progress is not None:
            on_progress(index + 1, table.num_rows)
    if num_rows != label_set.manifest.num_rows:
        origin = f"{cache.store.url}/{label_set.folder}/manifest.json"
        problems.append(f"{origin}: it says {label_set.manifest.num_rows} rows, its parts hold {num_rows}")
    return VerifyReport(
        num_parts=table.num_rows, num_blocks=num_blocks, num_rows=num_rows, num_bytes=num_bytes, problems=tuple(problems)
    )


def _problems(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except CacheError as error:
        return [str(error)]
    return []


def _verify_record(cache: Cache, *, path: str, tar_sha256: str) -> None:
    name = f"{path.rsplit('.', 2)[0]}.json"
    origin = f"{cache.store.url}/{name}"
    try:
        record = PartRecord.from_bytes(cache.store.read(name), origin=origin)
    except FileNotFoundError as error:
        raise CorruptError(f"{origin}: missing") from error
    replaced = path.rsplit("/", 1)[-1] in {earlier.tar_name for earlier in record.earlier}
    if record.tar_sha256 != tar_sha256 and not replaced:
        raise CorruptError(f"{origin}: it is the record of {record.tar_name}, the label set reads {path}")


def check_tar_bytes(cache: Cache, *, path: str, num_bytes: int, tar_sha256: str) -> None:
    """Refuse a tar whose bytes are not those that were committed.

    Raises:
        CorruptError: it is missing, or its size or sha256 is another.
        CacheError: the store failed, which says nothing about the bytes.
    """
    _verify_size(cache, path=path, num_bytes=num_bytes)
    found = tar_digest(cache, path=path)
    if found != tar_sha256:
        raise CorruptError(f"{cache.store.url}/{path}: sha256 is {found[:16]}, committed was {tar_sha256[:16]}")


def tar_digest(cache: Cache, *, path: str) -> str:
    """Return the sha256 of a tar, read a piece at a time."""
    hasher = hashlib.sha256()
    start = 0
    while chunk := cache.store.read_range(path, start=start, num_bytes=_CHUNK_BYTES):
        hasher.update(chunk)
        start += len(chunk)
    return hasher.hexdigest()


def _verify_size(cache: Cache, *, path: str, num_bytes: int) -> None:
    try:
        size = cache.store.size(path)
    except FileNotFoundError as error:
        raise CorruptError(f"{cache.store.url}/{path}: missing") from error
    if size != num_bytes:
        raise CorruptError(f"{cache.store.url}/{path}: {size} bytes, committed were {num_bytes}")


def _verify_part(
    cache: Cache,
    *,
    path: str,
    num_bytes: int,
    tar_sha256: str,
    num_samples: int,
    samples: Extent,
    blocks: list[BlockExtent],
    request: RequestSpec,
) -> None:
    check_tar_bytes(cache, path=path, num_bytes=num_bytes, tar_sha256=tar_sha256)
    check_tar_rows(cache, path=path, num_samples=num_samples, samples=samples, blocks=blocks, request=request)


def check_tar_rows(
    cache: Cache, *, path: str, num_samples: int, samples: Extent, blocks: Sequence[BlockExtent], request: RequestSpec
) -> None:
    """Refuse a tar whose bytes are those that were committed, and are not the rows that its record or a label set says.

    Args:
        num_samples: samples of the unit.
        samples, blocks: what is said of its members.
        request: what its labels are of.

    Raises:
        CorruptError: they are other rows, or none.
        CacheError: the store failed, which says nothing about the bytes.
    """
    origin = f"{cache.store.url}/{path}"
    imported = are_imported(request)
    keys = decode_samples(cache.read_extent(path, samples, imported=imported), origin=origin).keys
    if len(keys) != num_samples:
        raise CorruptError(f"{origin}: its table lists {len(keys)} samples, committed were {num_samples}")
    for extent in blocks:
        block = _decode_rows(cache.read_extent(path, extent, imported=imported), request=request, origin=origin)
        if key_hash(keys[block.first_sample : block.first_sample + block.num_samples]) != block.key_hash:
            raise CorruptError(f"{origin}: the block at {extent.offset} is of other samples than the part's table")
        found = (block.view, block.first_sample, block.num_samples, len(block.positions))
        if found != (extent.view, extent.first_sample, extent.num_samples, extent.num_rows):
            raise CorruptError(f"{origin}: the block at {extent.offset} is (view, first sample, samples, rows) {found}")
        values = block.soft_labels if isinstance(block, LabelBlock) else block.values
        if not isinstance(values, SoftLabels):
            continue
        sums = values.probs.sum(axis=1, dtype="f8") + values.rest
        if len(sums) and abs(sums - 1).max() > 1e-4:
            raise CorruptError(f"{origin}: a row of the block at {extent.offset} sums to {sums[abs(sums - 1).argmax()]}")


def _decode_rows(data: bytes, *, request: RequestSpec, origin: str) -> LabelBlock | TargetBlock:
    of_text = isinstance(request.view, TokensView | MaskedTokensView)
    if isinstance(request.target, SoftLabelsSpec) and not of_text:
        return decode_label_block(data, origin=origin)
    return decode_target_block(data, origin=origin)
