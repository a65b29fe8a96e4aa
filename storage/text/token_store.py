"""Token sequences of a source on local disk, to be read block by block in any order: what shuffling texts needs.

A folder of flat files, written once and mapped into memory: `tokens` (uint32), `words` (bool, where whole words are masked),
`lengths` and `labels` (int64, a sequence each), `keys` (UTF-8, each ended by a zero byte), `blocks` (int64 [blocks + 1, 3]: first
sequence, token and byte of keys), and `store.json`. A copy of the source in another form: removing it costs time only.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from storage.errors import FormatError
from storage.text.token_rows import TokenRows, offsets_of

_VERSION = 1
_DESCRIPTION = "store.json"
_TYPES: dict[str, Any] = {"tokens": np.uint32, "words": np.bool_, "lengths": np.int64, "labels": np.int64, "keys": np.uint8}


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBlock:
    """Some sequences.

    Attributes:
        labels: int64 [sequences].
        word_starts: bool [tokens]; None unless they were kept.
    """

    keys: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    tokens: TokenRows
    word_starts: npt.NDArray[np.bool_] | None


class TokenStore:
    """A store that is there in full. Picklable: a copy maps the files anew."""

    def __init__(self, folder: Path) -> None:
        """Open a store.

        Raises:
            FileNotFoundError: there is none.
            FormatError: its files are not those that were written together.
        """
        self._folder = folder
        written = (folder / _DESCRIPTION).read_bytes()
        try:
            description = json.loads(written)
            self.digest = str(description["digest"])
            self.max_label = int(description["max_label"])
            self.num_labelled = int(description["num_labelled"])
            self.blocks = np.fromfile(folder / "blocks", dtype=np.int64).reshape(-1, 3)
            self._check_sizes()
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise self._damaged(str(error)) from error
        self._files: dict[str, npt.NDArray[Any]] = {}

    def _check_sizes(self) -> None:
        if not len(self.blocks) or self.blocks[0].any() or (np.diff(self.blocks, axis=0) < 0).any():
            raise ValueError("its blocks do not follow each other")
        sequences, tokens, key_bytes = self.blocks[-1].tolist()
        expected = {"lengths": 8 * sequences, "labels": 8 * sequences, "tokens": 4 * tokens, "keys": key_bytes}
        if (self._folder / "words").exists():
            expected["words"] = tokens
        for name, num_bytes in {**expected, "blocks": self.blocks.nbytes}.items():
            found = (self._folder / name).stat().st_size
            if found != num_bytes:
                raise ValueError(f"{name} has {found} bytes, {num_bytes} were written")

    def _damaged(self, what: str) -> FormatError:
        return FormatError(
            f"{self._folder} is damaged: {what}. It is a copy of the source's tokens on this disk: remove the folder, and the "
            "next run makes it anew"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    @property
    def block_rows(self) -> npt.NDArray[np.int64]:
        """int64 [blocks], sequences of each."""
        return np.diff(self.blocks[:, 0])

    def _file(self, name: str) -> npt.NDArray[Any]:
        if name not in self._files:
            path = self._folder / name
            empty = np.zeros(0, dtype=_TYPES[name])
            self._files[name] = np.memmap(path, dtype=_TYPES[name], mode="r") if path.stat().st_size else empty
        return self._files[name]

    def read(self, block_id: int) -> TokenBlock:
        """Return a block.

        Raises:
            FormatError: lengths, tokens and keys do not belong together.
        """
        (first, token, byte), (end, last_token, last_byte) = self.blocks[block_id : block_id + 2].tolist()
        lengths = np.array(self._file("lengths")[first:end])
        num_tokens = last_token - token
        if ((lengths < 0) | (lengths > num_tokens)).any() or lengths.sum() != num_tokens:
            raise self._damaged(f"block {block_id} has {num_tokens} tokens, and sequences of other lengths")
        try:
            keys = self._file("keys")[byte:last_byte].tobytes().decode().split("\0")[:-1]
        except UnicodeDecodeError as error:
            raise self._damaged(f"keys of block {block_id}: {error}") from error
        if len(keys) != end - first:
            raise self._damaged(f"block {block_id} has {len(keys)} keys of {end - first} sequences")
        words = None
        if (self._folder / "words").exists():
            words = np.array(self._file("words")[token:last_token])
        return TokenBlock(
            keys=tuple(keys),
            labels=np.array(self._file("labels")[first:end]),
            tokens=TokenRows(offsets=offsets_of(lengths), token_ids=np.array(self._file("tokens")[token:last_token])),
            word_starts=words,
        )


def write_token_store(folder: Path, blocks: Iterable[TokenBlock]) -> TokenStore:
    """Write blocks and return the store; several processes may do so at once, and the first one that is done counts."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(temporary, blocks)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / _DESCRIPTION).is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return TokenStore(folder)


def _write(folder: Path, blocks: Iterable[TokenBlock]) -> None:
    places = [(0, 0, 0)]
    digest = xxhash.xxh3_128()
    max_label, num_labelled = -1, 0
    with _Files(folder) as files:
        for block in blocks:
            keys = b"".join(key.encode() + b"\0" for key in block.keys)
            columns: dict[str, bytes] = {
                "lengths": block.tokens.lengths.tobytes(),
                "tokens": np.ascontiguousarray(block.tokens.token_ids, dtype=np.uint32).tobytes(),
                "labels": np.ascontiguousarray(block.labels, dtype=np.int64).tobytes(),
                "keys": keys,
            }
            if block.word_starts is not None:
                columns["words"] = block.word_starts.tobytes()
            for name, data in columns.items():
                files.append(name, data)
                digest.update(data)
            first, token, byte = places[-1]
            places.append((first + len(block.keys), token + len(block.tokens.token_ids), byte + len(keys)))
            max_label = max(max_label, int(block.labels.max(initial=-1)))
            num_labelled += int((block.labels >= 0).sum())
        files.append("blocks", np.array(places, dtype=np.int64).tobytes())
    description = {
        "version": _VERSION,
        "digest": digest.hexdigest(),
        "max_label": max_label,
        "num_labelled": num_labelled,
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description))


class _Files:
    """Files of a folder that is being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}

    def append(self, name: str, data: bytes) -> None:
        if name not in self._files:
            self._files[name] = (self._folder / name).open("wb")
        self._files[name].write(data)

    def __enter__(self) -> _Files:
        for name in ("tokens", "lengths", "labels", "keys"):
            self.append(name, b"")
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
