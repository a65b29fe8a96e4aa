"""Labels as a plain WebDataset: members for each sample and view that its standard decoders read, and no pickle."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from storage import tar
from storage.interchange.output import OpenFileExport
from storage.interchange.rows import LabelledRows, RowReader
from storage.sources.base import NO_LABEL

ROWS_PER_SHARD = 10_000
_NAME_BYTES = 100


def member_stem(key: str, *, view: int) -> str:
    """Return the `__key__` of a row: the sample key, percent-encoded where a member's name could not carry it, and the view.

    Dots are encoded too, since WebDataset ends the name of a sample at the first one; so are a first slash and, since it skips
    folders such as __meta__, a first underscore.
    """
    name = quote(key, safe="/").replace(".", "%2E")
    first = {"/": "%2F", "_": "%5F"}.get(name[0], name[0])
    return f"{first}{name[1:]}/{view:05d}"


def parse_member_stem(stem: str) -> tuple[str, int]:
    """Return the sample key and the view of a `__key__`."""
    name, _, view = stem.rpartition("/")
    return unquote(name), int(view)


@functools.lru_cache(maxsize=1024)
def _npy_header(dtype: str, length: int) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": (length,)})
    return buffer.getvalue()


def _npy(values: npt.NDArray[np.generic]) -> bytes:
    return _npy_header(values.dtype.str, len(values)) + values.tobytes()


@functools.lru_cache(maxsize=4096)
def _nameless_header(num_bytes: int) -> tuple[bytes, int]:
    """Return the header of a member without a name, and the sum of its bytes, the checksum counted as blanks."""
    header = tar.member_header("", num_bytes=num_bytes)
    return header, sum(header[:148]) + sum(b" " * 8) + sum(header[156:])


def member_header(name: str, *, num_bytes: int) -> bytes:
    """Return the header of a member, of any length of an ASCII name; `tarfile` makes the same bytes, in ten times the time."""
    encoded = name.encode("ascii")
    if len(encoded) > _NAME_BYTES:
        info = tarfile.TarInfo(name)
        info.size = num_bytes
        return info.tobuf(format=tarfile.PAX_FORMAT)
    header, checksum = _nameless_header(num_bytes)
    return encoded.ljust(_NAME_BYTES, b"\0") + header[100:148] + b"%06o\0 " % (checksum + sum(encoded)) + header[156:]


def _add(file: BinaryIO, *, name: str, data: bytes) -> None:
    file.write(member_header(name, num_bytes=len(data)) + data + tar.padding(len(data)))


def write_rows(file: BinaryIO, rows: LabelledRows, *, span: slice) -> None:
    """Append some rows to a tar: `.json` (key, view, label or null, rest), `.class_ids.npy` and `.probs.npy` of each."""
    soft_labels = rows.soft_labels
    num_kept = (soft_labels.probs > 0).sum(axis=1).tolist()
    for row in range(*span.indices(len(rows.keys))):
        key, label, entries = rows.keys[row], int(rows.labels[row]), num_kept[row]
        stem = member_stem(key, view=rows.view)
        facts = {
            "key": key,
            "view": rows.view,
            "label": None if label == NO_LABEL else label,
            "rest": float(soft_labels.rest[row]),
        }
        _add(file, name=f"{stem}.json", data=json.dumps(facts, ensure_ascii=False).encode())
        _add(file, name=f"{stem}.class_ids.npy", data=_npy(soft_labels.class_ids[row, :entries]))
        _add(file, name=f"{stem}.probs.npy", data=_npy(soft_labels.probs[row, :entries]))


@dataclass(kw_only=True)
class WebDatasetExport(OpenFileExport):
    """Writes `labels-<number>.tar` shards of 10,000 rows."""

    _file: BinaryIO | None = None
    _num_shards: int = 0
    _rows_in_shard: int = 0

    def write(self, reader: RowReader, *, view: int) -> Iterator[int]:
        """Write a view; yield the rows of each block that was taken in."""
        for rows in reader.read(view):
            first = 0
            while first < len(rows.keys):
                if self._file is None:
                    self._file = self._stack.enter_context(self.folder.create(f"labels-{self._num_shards:06d}.tar"))
                    self._num_shards += 1
                    self._rows_in_shard = 0
                last = min(len(rows.keys), first + ROWS_PER_SHARD - self._rows_in_shard)
                write_rows(self._file, rows, span=slice(first, last))
                self._rows_in_shard += last - first
                first = last
                if self._rows_in_shard == ROWS_PER_SHARD:
                    self.close()
            yield len(rows.keys)

    def close(self) -> None:
        """Finish the shard at hand; the next rows begin another."""
        if self._file is not None:
            self._file.write(tar.END_OF_ARCHIVE)
        self._file = None
        self._stack.close()
