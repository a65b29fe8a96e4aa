"""Remember what units hold, so that an unchanged source is not read again."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from storage.errors import CacheError
from storage.hashing import canonical_json, checksum
from storage.parquet_bounds import check_size
from storage.sources.files import open_store

_VERSION = b"1"
_BATCH_UNITS = 64
_ROW_BYTES = 8
"""A row takes no fewer in the file: it holds a checksum of its own."""
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("stat_token", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("num_samples", pa.int64(), nullable=False),
        pa.field("key_hash", pa.uint64(), nullable=False),
        pa.field("key_hashes", pa.large_binary(), nullable=False),
        pa.field("checksum", pa.uint64(), nullable=False),
    ],
    metadata={b"decant.source_memo": _VERSION},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoEntry:
    """What one unit held when it was read.

    Attributes:
        name, stat_token: the unit and the state of its files.
        digest: `UnitDigest` of its samples.
        num_samples: their number.
        key_hash: `storage.hashing.key_hash` over their keys.
        key_hashes: uint64 [num_samples], xxh3-64 of each key.
    """

    name: str
    stat_token: str
    digest: str
    num_samples: int
    key_hash: int
    key_hashes: npt.NDArray[np.uint64]

    def checksum(self) -> int:
        """Return the xxh3-64 of all fields; an entry whose stored checksum differs is not trusted."""
        head = canonical_json([self.name, self.stat_token, self.digest, self.num_samples, self.key_hash])
        return checksum(head + self.key_hashes.astype("<u8").tobytes())


class SourceMemo:
    """A Parquet file of `MemoEntry` rows, local or in an object store. One memo serves one source.

    It only saves time: a memo that is missing, damaged or of another version counts as empty and is written anew.
    """

    def __init__(self, url: str, *, must_save: bool = True) -> None:
        """Name the file.

        Args:
            must_save: whether a store that cannot be written is an error; else the memo stays what it was.
        """
        self._url = url
        self._must_save = must_save

    def entries(self) -> Iterator[MemoEntry]:
        """Yield every entry that is whole.

        Raises:
            CacheError: the store cannot be reached.
        """
        with tempfile.TemporaryDirectory(prefix="decant-memo-") as folder:
            path = self._fetch(Path(folder))
            if path is None:
                return
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
                    # Damage may have changed the types, or what the file says of itself.
                    if not parquet.schema_arrow.equals(_SCHEMA, check_metadata=True):
                        return
                    mapped = np.memmap(path, dtype=np.uint8, mode="r")
                    check_size(parquet, mapped.data, row_bytes=_ROW_BYTES, group_by_group=True)
                    for batch in parquet.iter_batches(batch_size=_BATCH_UNITS, use_threads=False):
                        yield from filter(None, map(_entry, *(batch.column(name).to_pylist() for name in _SCHEMA.names)))
            except (pa.ArrowException, OSError, ValueError, KeyError):
                return

    def _fetch(self, folder: Path) -> Path | None:
        fs, path = open_store(self._url)
        try:
            if not fs.exists(path):
                return None
            if isinstance(fs, LocalFileSystem):
                return Path(path)
            fs.get_file(path, str(folder / "memo"))
        except Exception as error:  # clients of stores raise their own exceptions, which share no base class
            raise CacheError(
                f"cannot read {self._url}: {type(error).__name__}: {error}; check the cache's path and credentials"
            ) from error
        return folder / "memo"

    def save(self, entries: Iterable[MemoEntry]) -> None:
        """Replace the memo; readers see the old one or the new one, never a part.

        Raises:
            CacheError: the store cannot be written, and `must_save`.
        """
        with contextlib.nullcontext() if self._must_save else contextlib.suppress(CacheError):
            self._save(entries)

    def _save(self, entries: Iterable[MemoEntry]) -> None:
        fs, path = open_store(self._url)
        local = isinstance(fs, LocalFileSystem)
        try:
            if local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".decant-memo-", dir=Path(path).parent if local else None) as folder:
                file = Path(folder) / "memo"
                _write(file, entries=entries)
                if local:
                    file.replace(path)
                else:
                    fs.put_file(str(file), path)
        except Exception as error:  # as above
            raise CacheError(
                f"cannot write {self._url}: {type(error).__name__}: {error}; check the cache's path and space"
            ) from error


def _write(file: Path, *, entries: Iterable[MemoEntry]) -> None:
    with pq.ParquetWriter(file, _SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        rows: list[MemoEntry] = []
        for entry in entries:
            rows.append(entry)
            if len(rows) == _BATCH_UNITS:
                writer.write_batch(_batch(rows))
                rows.clear()
        if rows:
            writer.write_batch(_batch(rows))


def _batch(entries: list[MemoEntry]) -> pa.RecordBatch:
    columns = [
        [entry.name for entry in entries],
        [entry.stat_token for entry in entries],
        [entry.digest for entry in entries],
        [entry.num_samples for entry in entries],
        [entry.key_hash for entry in entries],
        [entry.key_hashes.astype("<u8").tobytes() for entry in entries],
        [entry.checksum() for entry in entries],
    ]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _entry(
    name: str, stat_token: str, digest: str, num_samples: int, key_hash: int, key_hashes: bytes, stored_checksum: int
) -> MemoEntry | None:
    if len(key_hashes) != 8 * num_samples or not re.fullmatch("[0-9a-f]{64}", digest):
        return None
    entry = MemoEntry(
        name=name,
        stat_token=stat_token,
        digest=digest,
        num_samples=num_samples,
        key_hash=key_hash,
        key_hashes=np.frombuffer(key_hashes, dtype="<u8"),
    )
    return entry if entry.checksum() == stored_checksum else None
