"""Folders that are written whole or not at all: an export that was interrupted leaves nothing that looks complete."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from fsspec.implementations.local import LocalFileSystem

from storage.errors import CacheError
from storage.filesystem import filesystem_of

SUMMARY = "export.json"
"""What was exported and what the format could not hold; the last file to be there."""
INCOMPLETE = "export.incomplete"
"""In an object store, which cannot rename folders: there from the first file to the last."""
_OF_LAYOUTS = re.compile(r"labels-[0-9]{6,}\.(parquet|tar)|logits_top[0-9]+_epoch[0-9]+/rank0-(keys\.txt|values\.bin)")
"""What an export that was interrupted, and says nothing of its files, may have left."""


class ExportFolder:
    """A new folder at a local path or fsspec URL, filled file by file.

    Locally it is built beside its place under a hidden name and renamed when it is complete. In an object store each file is
    uploaded whole, `export.json` last; what was uploaded is removed when something fails.
    """

    def __init__(self, url: str, *, force: bool = False) -> None:
        """Name the place; nothing is written before `with`.

        Args:
            url: the folder to make.
            force: whether an earlier export may lie there, which is then replaced.
        """
        self.url = url.rstrip("/")
        self._force = force
        self._fs, self._root = filesystem_of(self.url)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._files: dict[str, int] = {}
        self._committed = False
        self._staging = Path()

    def __enter__(self) -> Self:
        with self._explained("write", all_errors=True):
            self._check_place()
            if self._local:
                place = Path(self._root)
                place.parent.mkdir(parents=True, exist_ok=True)
                self._staging = place.parent / f".{place.name}.{uuid.uuid4().hex}.partial"
                self._staging.mkdir()
            else:
                self._clear()
                self._staging = Path(tempfile.mkdtemp(prefix="decant-export-"))
                self._fs.pipe_file(self._path(INCOMPLETE), b"an export is being written here, or was interrupted\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        shutil.rmtree(self._staging, ignore_errors=True)
        if not self._local and not self._committed:
            self._clear()

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def _explained(self, doing: str, *, all_errors: bool = False) -> Iterator[None]:
        """Turn errors of the file system into a CacheError; all errors where only a store's client can raise them."""
        try:
            yield
        except Exception as error:  # clients of stores raise their own exceptions, which share no base class
            if isinstance(error, CacheError) or not (all_errors or isinstance(error, OSError)):
                raise
            raise CacheError(
                f"cannot {doing} {self.url}: {getattr(error, 'strerror', None) or error}; nothing was exported. Check that it "
                "can be reached, is writable and has space"
            ) from error

    def _check_place(self) -> None:
        self._fs.invalidate_cache()
        if self._local and Path(self._root).is_file():
            raise CacheError(f"{self.url} is a file, so no folder can be exported there; give another path")
        found = {path[len(self._path("")) :] for path in self._fs.find(self._root)} if self._fs.exists(self._root) else set()
        interrupted = INCOMPLETE in found
        if found and not interrupted and SUMMARY not in found:
            raise CacheError(
                f"{self.url} holds {len(found)} files that are no export of Decant, which are not replaced; give another path"
            )
        if found and not interrupted and not self._force:
            raise CacheError(f"{self.url} holds an export already; give another path, or --force to replace it")
        exported = set(filter(_OF_LAYOUTS.fullmatch, found)) if interrupted else self._exported() if found else set()
        others = found - {SUMMARY, INCOMPLETE, *exported}
        if others:
            raise CacheError(
                f"{self.url} holds {len(others)} files that are not of the export there, such as {min(others)!r}, and would lose "
                "them with it; move them away, or give another path"
            )

    def _exported(self) -> set[str]:
        """Return the files that the export which lies there says it has; none where it cannot be read."""
        try:
            return set(json.loads(self._fs.cat_file(self._path(SUMMARY)))["files"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return set()

    def _clear(self) -> None:
        """Remove an earlier export from an object store, its summary first: without it nothing looks complete."""
        self._fs.invalidate_cache()
        found = self._fs.find(self._root) if self._fs.exists(self._root) else []
        # File by file: what removes folders would take an empty bucket away, too.
        for path in sorted(found, key=lambda path: path != self._path(SUMMARY)):
            self._fs.rm_file(path)
        self._fs.invalidate_cache()

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Open a new file of the folder; it is published when the folder is (local) or when it is closed (object stores)."""
        path = self._staging / name
        with self._explained("write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        with self._explained("write"), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        self._files[name] = path.stat().st_size
        if not self._local:
            with self._explained("write", all_errors=True):
                self._fs.put_file(str(path), self._path(name))
            path.unlink()

    def commit(self, summary: dict[str, Any]) -> dict[str, int]:
        """Write `export.json` and let the folder appear; return the bytes of every file by name.

        Args:
            summary: JSON data; the files and their sizes are added.
        """
        files = dict(self._files)
        with self.create(SUMMARY) as file:
            file.write(json.dumps({**summary, "files": files}, indent=1, ensure_ascii=False).encode())
        with self._explained("publish", all_errors=True):
            if self._local:
                self._publish()
            else:
                self._fs.rm_file(self._path(INCOMPLETE))
        self._committed = True
        return files

    def _publish(self) -> None:
        place = Path(self._root)
        if not place.exists() or not any(place.iterdir()):
            self._staging.replace(place)
            return
        old = place.parent / f".{place.name}.{uuid.uuid4().hex}.replaced"
        place.rename(old)
        try:
            self._staging.rename(place)
        except OSError:
            old.rename(place)
            raise
        shutil.rmtree(old)


@dataclass(kw_only=True)
class OpenFileExport:
    """What writes one file of an export after another; an error reaches the open one, which is then not published."""

    folder: ExportFolder
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._stack.__exit__(kind, error, traceback)

    def close(self) -> None:
        """Finish the file at hand; the next rows begin another."""
        self._stack.close()
