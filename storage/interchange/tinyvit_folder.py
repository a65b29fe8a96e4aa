"""Read TinyViT's logits folder: list it, check that it is whole, and find the records of samples."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from storage.errors import CorruptError, MismatchError
from storage.filesystem import Store, filesystem_of
from storage.hashing import fingerprint
from storage.interchange.tinyvit import EPOCH_FOLDER, MAX_ENTRIES, PACKAGE_FILE, epoch_folder, record_dtype
from storage.sources.checks import MAX_KEY_BYTES

_CHUNK_BYTES = 1 << 24
_LINE_BYTES = MAX_KEY_BYTES + 2
_REMEDY = "Fetch the file again, or leave the epoch out"


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """What one of TinyViT's processes wrote in one epoch.

    Attributes:
        name: path inside the folder, without the endings of its two files.
    """

    name: str
    num_records: int
    keys_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyViTFolder:
    """A logits folder whose files are there and have the sizes that their names say.

    Attributes:
        epochs: packages by epoch, ascending; packages in the order of their ranks.
    """

    store: Store
    k: int
    epochs: dict[int, tuple[Package, ...]]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        size = record_dtype(self.k).itemsize
        return sum(size * package.num_records + package.keys_bytes for packages in self.epochs.values() for package in packages)


def list_folder(url: str, *, epochs: Iterable[int] | None = None) -> TinyViTFolder:
    """Return what a logits folder holds.

    Args:
        epochs: those to take; None: all.

    Raises:
        MismatchError: no logits folder, labels of several K, or an epoch that is not there.
        CorruptError: a file is missing, or its size is no number of records.
    """
    store = Store(url)
    files: dict[tuple[int, int], dict[int, set[str]]] = {}
    for path in store.names(""):
        folder, _, name = path.rpartition("/")
        epoch, file = EPOCH_FOLDER.fullmatch(folder), PACKAGE_FILE.fullmatch(name)
        if epoch and file:
            files.setdefault((int(epoch[1]), int(epoch[2])), {}).setdefault(int(file[1]), set()).add(file[2])
    if not files:
        raise MismatchError(
            f"{url} is no logits folder of TinyViT: it holds no logits_top<K>_epoch<E>/rank0-values.bin; give the folder that "
            "holds the epochs (DISTILL.TEACHER_LOGITS_PATH)"
        )
    ks = sorted({k for k, _ in files})
    if len(ks) > 1:
        raise MismatchError(f"{url} holds labels of K = {', '.join(map(str, ks))}, which are two label sets; give each a folder")
    if ks[0] > MAX_ENTRIES:
        raise MismatchError(
            f"{url} holds labels of K = {ks[0]}, more classes than ids of 16 bits name ({MAX_ENTRIES:,}); its folders are named "
            "logits_top<K>_epoch<E>"
        )
    found = {epoch: ranks for (_, epoch), ranks in sorted(files.items())}
    chosen = list(found) if epochs is None else sorted(set(epochs))
    absent = [epoch for epoch in chosen if epoch not in found]
    if absent or not chosen:
        raise MismatchError(f"{url} has epochs {', '.join(map(str, found))}; asked for were {absent or 'none'}")
    return TinyViTFolder(
        store=store, k=ks[0], epochs={epoch: _list_epoch(store, k=ks[0], epoch=epoch, ranks=found[epoch]) for epoch in chosen}
    )


def _list_epoch(store: Store, *, k: int, epoch: int, ranks: dict[int, set[str]]) -> tuple[Package, ...]:
    size = record_dtype(k).itemsize
    packages = []
    for rank in range(max(ranks) + 1):
        name = f"{epoch_folder(k, epoch=epoch)}/rank{rank}"
        missing = {"keys.txt", "values.bin"} - ranks.get(rank, set())
        if missing:
            raise CorruptError(
                f"{store.url}/{name}-{min(missing)} is missing, so the epoch is not whole: rank{max(ranks)} is there. {_REMEDY}"
            )
        num_bytes = store.size(f"{name}-values.bin")
        if num_bytes % size:
            raise CorruptError(
                f"{store.url}/{name}-values.bin has {num_bytes:,} bytes, no whole number of records of {size} bytes (K = {k}): "
                f"it was cut off, or is of another K. {_REMEDY}"
            )
        package = Package(name=name, num_records=num_bytes // size, keys_bytes=store.size(f"{name}-keys.txt"))
        if package.keys_bytes > (package.num_records + 1) * _LINE_BYTES:
            raise CorruptError(
                f"{store.url}/{name}-keys.txt has {package.keys_bytes:,} bytes for {package.num_records:,} keys of at most "
                f"{MAX_KEY_BYTES:,}. {_REMEDY}"
            )
        packages.append(package)
    return tuple(packages)


def digest_folder(folder: TinyViTFolder, *, on_progress: Callable[[int, int], None] | None = None) -> str:
    """Return the sha256 that stands for every byte of the folder: of the names and sha256 of its files in order.

    Args:
        on_progress: called with bytes read and bytes in all.
    """
    digests = []
    done, total = 0, folder.num_bytes
    for packages in folder.epochs.values():
        for name in (f"{package.name}-{file}" for package in packages for file in ("keys.txt", "values.bin")):
            hasher = hashlib.sha256()
            start = 0
            while chunk := folder.store.read_range(name, start=start, num_bytes=_CHUNK_BYTES):
                hasher.update(chunk)
                start += len(chunk)
                done += len(chunk)
                if on_progress is not None:
                    on_progress(done, total)
            digests.append([name, start, hasher.hexdigest()])
    return fingerprint(digests)


def read_keys(folder: TinyViTFolder, package: Package) -> pa.LargeStringArray:
    """Return the keys of a package, a line each, stripped as TinyViT strips them.

    Raises:
        CorruptError: a key is missing or empty or stands there twice, or the last line was cut off.
    """
    origin = f"{folder.store.url}/{package.name}-keys.txt"
    data = folder.store.read(f"{package.name}-keys.txt").replace(b"\r\n", b"\n")
    text = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(text == ord("\n")) + 1
    if len(data) and (not len(ends) or ends[-1] != len(data)):
        raise CorruptError(f"{origin}: its last line does not end, so it was cut off. {_REMEDY}")
    if len(ends) != package.num_records:
        raise CorruptError(
            f"{origin} has {len(ends):,} keys, {package.name}-values.bin {package.num_records:,} records of K = {folder.k}: "
            f"labels would go to other samples. {_REMEDY}"
        )
    offsets = pa.py_buffer(np.concatenate([np.zeros(1, dtype=np.int64), ends.astype(np.int64)]))
    lines = pa.LargeStringArray.from_buffers(len(ends), offsets, pa.py_buffer(data))
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid as error:
        raise CorruptError(f"{origin}: not UTF-8 ({error}). {_REMEDY}") from error
    keys: pa.LargeStringArray = pc.utf8_trim_whitespace(lines)
    bad = pc.any(pc.or_(pc.equal(keys, ""), pc.match_substring_regex(keys, "[\r\x00]"))).as_py()
    if bad:
        raise CorruptError(f"{origin}: a key is empty, or holds a carriage return or a zero byte. {_REMEDY}")
    if pc.count_distinct(keys).as_py() != len(keys):
        raise CorruptError(f"{origin}: a key stands there twice, which TinyViT never writes; the file is damaged. {_REMEDY}")
    return keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where the records of samples lie.

    Attributes:
        records: int64 [samples], record in the epoch's packages, counted through; -1 where there is none.
        num_unused: keys of the epoch that are no sample's.
        num_doubled: records beyond the first of a sample: TinyViT pads epochs to a multiple of its processes.
    """

    records: npt.NDArray[np.int64]
    num_unused: int
    num_doubled: int


class EpochRecords:
    """The records of one epoch, mapped into memory; from an object store they are fetched to a temporary file first."""

    def __init__(self, folder: TinyViTFolder, *, epoch: int) -> None:
        self._folder = folder
        self._packages = folder.epochs[epoch]
        self._stack = ExitStack()
        self._records: list[npt.NDArray[np.void]] = []
        self._starts = np.concatenate([[0], np.cumsum([package.num_records for package in self._packages])])

    def __enter__(self) -> Self:
        dtype = record_dtype(self._folder.k)
        fs, _ = filesystem_of(self._folder.store.url)
        for package in self._packages:
            path = self._folder.store.path(f"{package.name}-values.bin")
            if package.num_records and not isinstance(fs, LocalFileSystem):
                spool = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="decant-import-"))
                fs.get_file(path, str(Path(spool) / "values"))
                path = str(Path(spool) / "values")
            mapped = np.memmap(path, dtype=dtype, mode="r", shape=(package.num_records,)) if package.num_records else None
            self._records.append(np.zeros(0, dtype=dtype) if mapped is None else mapped)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._records.clear()
        self._stack.close()

    def first_key(self) -> str | None:
        """Return some key of the epoch, for messages."""
        for package in self._packages:
            if package.num_records:
                return str(read_keys(self._folder, package)[0].as_py())
        return None

    def find(self, samples: pa.LargeStringArray) -> Places:
        """Return where the records of samples lie; keys are compared whole, in memory."""
        keys = pa.concat_arrays([read_keys(self._folder, package) for package in self._packages])
        found = pc.index_in(keys, value_set=samples)
        lines = np.flatnonzero(pc.is_valid(found).to_numpy(zero_copy_only=False)).astype(np.int64)
        owners = found.drop_null().to_numpy(zero_copy_only=False)
        records = np.full(len(samples), -1, dtype=np.int64)
        # The last assignment stays, so the first record of a sample is the one taken.
        records[owners[::-1]] = lines[::-1]
        num_found = int((records >= 0).sum())
        return Places(records=records, num_unused=len(keys) - len(lines), num_doubled=len(lines) - num_found)

    def take(self, records: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        """Return records by their place, in the order asked for."""
        taken = np.zeros(len(records), dtype=record_dtype(self._folder.k))
        packages = np.searchsorted(self._starts, records, side="right") - 1
        for package in np.unique(packages).tolist():
            mine = packages == package
            taken[mine] = self._records[package][records[mine] - self._starts[package]]
        return taken
