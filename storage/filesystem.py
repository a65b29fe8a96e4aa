"""Files of a cache, on any fsspec store: all-or-nothing writes, create-if-absent, ranged reads."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from storage.connections import connect
from storage.creation import PROBE, can_create_at_once, create_at_once, create_by_turns, create_in_turns_remotely
from storage.errors import CacheError
from storage.retries import StillFailingError

PARTIAL = ".partial"
_memory_lock = threading.Lock()
"""fsspec's store in memory looks whether a file is there and then writes it; s3fs and gcsfs do both at once."""

_MODIFIED = ("LastModified", "mtime", "created", "updated")
"""What clients of stores call the time at which a file came to be; their files are never changed afterwards."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""What file systems without hard links answer, as exFAT or some network mounts."""

_creating_at_once: dict[str, bool] = {}
"""What stores that were asked, by URL, can do; asked once in a process."""


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path inside it; of a remote one, operations that fail for a moment are tried again.

    Raises:
        CacheError: the protocol is unknown or its package is not installed.
    """
    protocol = url.split("://", 1)[0] if "://" in url else "file"
    try:
        fs, path = connect(url)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'decant[{extra}]'" if extra else "install the fsspec package for this protocol"
        raise CacheError(f"{url}: cannot open {protocol}:// paths ({error}); {remedy}") from error
    except ValueError as error:
        raise CacheError(f"{url}: {error}; use a local path, s3://, gs:// or memory://") from error
    return fs, path


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file as a store lists it.

    Attributes:
        name: relative to the store.
        modified: POSIX time by the store's own clock at which the file got its name or its bytes, whichever was later.
    """

    name: str
    num_bytes: int
    modified: float


class Store:
    """A folder of files that are written once, whole. Picklable."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if url != "/" else url
        self._fs, self._root = filesystem_of(self.url)
        self._local = isinstance(self._fs, LocalFileSystem)
        self.is_near = self._local or isinstance(self._fs, MemoryFileSystem)
        """On this machine's disk or in its memory, so that nothing is gained by reading several files at a time."""

    def __reduce__(self) -> tuple[Any, tuple[str, bool | None]]:
        return _store_again, (self.url, _creating_at_once.get(self.url))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def path(self, name: str) -> str:
        """Return the path of a file inside the store's file system."""
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _explained(self, doing: str, name: str, *, answers: tuple[type[OSError], ...] = (FileNotFoundError,)) -> Iterator[None]:
        """Turn what a store raises into a CacheError; `answers` are no failure, and come through as they are."""
        try:
            yield
        except answers:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise CacheError(
                f"cannot {doing} {self.url}/{name}: {reason}; check that the store can be reached, is writable and has space. "
                "What was committed before is whole: run the same command again to go on."
            ) from error
        except Exception as error:
            # Object store clients raise their own types (credentials, endpoints, dropped connections).
            if type(error).__module__.split(".")[0] not in {"botocore", "aiobotocore", "gcsfs", "google", "aiohttp", "urllib3"}:
                raise
            raise CacheError(f"cannot {doing} {self.url}/{name}: {error}; check endpoint, credentials and network") from error

    def read(self, name: str) -> bytes:
        """Return a whole file.

        Raises:
            FileNotFoundError: there is none.
            CacheError: the store failed.
        """
        with self._explained("read", name):
            if self._local:
                with open(self.path(name), "rb", buffering=0) as file:  # noqa: PTH123 - a str path saves a Path per part record
                    return file.read()
            return bytes(self._fs.cat_file(self.path(name)))

    def read_range(self, name: str, *, start: int, num_bytes: int) -> bytes:
        """Return bytes [start, start + num_bytes) of a file, fewer where it ends before."""
        with self._explained("read", name):
            if self._local:
                with open(self.path(name), "rb", buffering=0) as file:  # noqa: PTH123 - a str path saves a Path per block
                    return os.pread(file.fileno(), min(num_bytes, os.fstat(file.fileno()).st_size), start)
            try:
                data: bytes = self._fs.cat_file(self.path(name), start=start, end=start + num_bytes)
            except StillFailingError:
                raise
            except Exception:
                # Object stores refuse a range that begins at or behind the end, each with an error of its own.
                if start < self._fs.size(self.path(name)):
                    raise
                return b""
            return data[:num_bytes]

    def size(self, name: str) -> int:
        """Return the bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._explained("look at", name):
            if self._local:
                return os.stat(self.path(name)).st_size  # noqa: PTH116 - as above
            self._fs.invalidate_cache()
            return int(self._fs.size(self.path(name)))

    def exists(self, name: str) -> bool:
        """Return whether a file is there."""
        with self._explained("look at", name):
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self.path(name)))

    def names(self, prefix: str) -> list[str]:
        """List files below a folder, relative to the store, sorted.

        A hint, never truth: files may lie there that nobody committed. What a killed writer left half written is not listed.
        """
        with self._explained("list", prefix):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self.path(prefix))
            except FileNotFoundError:
                return []
            start = len(self.path(""))
            return sorted(path[start:] for path in found if not path.endswith(PARTIAL))

    def folders(self, prefix: str) -> list[str]:
        """List the names of the folders directly inside a folder, sorted. A hint, as `names` is."""
        with self._explained("list", prefix):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self.path(prefix), detail=True)
            except FileNotFoundError:
                return []
            return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in found if entry["type"] == "directory")

    def files(self, folder: str, *, beginning: str = "") -> Iterator[StoredFile]:
        """Yield every file below a folder with size and time, in no order, also what a killed writer left half written.

        Only files and folders directly inside that begin with `beginning`. A hint, as `names` is; a local folder is never held as
        a whole.
        """
        with self._explained("list", folder):
            if self._local:
                yield from self._local_files(folder, beginning=beginning)
                return
            self._fs.invalidate_cache()
            filtered = {"prefix": beginning} if beginning and "prefix" in inspect.signature(self._fs.find).parameters else {}
            try:
                found = self._fs.find(self.path(folder), detail=True, **filtered)
            except FileNotFoundError:
                return
            start = len(self.path(""))
            for path, info in found.items():
                if path[start:].removeprefix(folder).lstrip("/").startswith(beginning):
                    yield StoredFile(name=path[start:], num_bytes=int(info["size"]), modified=_modified(info))

    def _local_files(self, folder: str, *, beginning: str = "") -> Iterator[StoredFile]:
        try:
            entries = os.scandir(self.path(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        with entries:
            for entry in entries:
                if not entry.name.startswith(beginning):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    yield from self._local_files(name)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    yield _local_file(name, entry.stat(follow_symlinks=False))

    def look(self, name: str) -> StoredFile:
        """Return a file's size and time.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._explained("look at", name):
            if self._local:
                return _local_file(name, os.lstat(self.path(name)))
            self._fs.invalidate_cache()
            info = self._fs.info(self.path(name))
            return StoredFile(name=name, num_bytes=int(info["size"]), modified=_modified(info))

    def now(self) -> float:
        """Return the POSIX time by the store's own clock, which need not be this machine's, from a probe that is written.

        What is written later has no earlier time.

        Raises:
            CacheError: the store cannot be written.
        """
        name = f"{PROBE}{uuid.uuid4().hex}"
        self.write(name, b"probe")
        try:
            return self.look(name).modified
        finally:
            self.remove(name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all, over any other of that name."""
        with self._explained("write", name, answers=()):
            if self._local:
                with self._staged(name, data) as staged:
                    os.replace(staged, self.path(name))  # noqa: PTH105
            else:
                self._fs.pipe_file(self.path(name), data)

    @property
    def creates_at_once(self) -> bool:
        """Whether the store itself sees to it that a file is created once; a remote store is asked by a probe, once."""
        if self.url not in _creating_at_once:
            if self.is_near:
                return True
            with self._explained("create", PROBE, answers=()):
                _creating_at_once[self.url] = can_create_at_once(self._fs, self._root)
        return _creating_at_once[self.url]

    def create(self, name: str, data: bytes) -> bool:
        """Write a file if there is none of that name; return whether this call made it.

        Where the store cannot do that at once (`creates_at_once`), it takes a second; what is promised then is in
        docs/object_stores.md.
        """
        at_once = self.creates_at_once
        with self._explained("create", name, answers=()):
            if self._local:
                return self._create_locally(name, data, at_once=at_once)
            if isinstance(self._fs, MemoryFileSystem):
                return self._create_in_memory(name, data)
            return (create_at_once if at_once else create_in_turns_remotely)(self._fs, self.path(name), data)

    def _create_locally(self, name: str, data: bytes, *, at_once: bool) -> bool:
        if at_once:
            with self._staged(name, data) as staged:
                try:
                    os.link(staged, self.path(name))
                    return True
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
            _creating_at_once[self.url] = False
        return create_by_turns(
            is_there=lambda: self.exists(name), write=lambda: self.write(name, data), is_mine=lambda: self.read(name) == data
        )

    def _create_in_memory(self, name: str, data: bytes) -> bool:
        with _memory_lock, contextlib.suppress(FileExistsError):
            self._fs.pipe_file(self.path(name), data, mode="create")
            return True
        return False

    @contextlib.contextmanager
    def _staged(self, name: str, data: bytes) -> Iterator[str]:
        target = Path(self.path(name))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, f"{target.parent} is a file, not a folder") from error
        staged = target.parent / f".{uuid.uuid4().hex}{PARTIAL}"
        try:
            with staged.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield str(staged)
        finally:
            staged.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file; absent is fine."""
        with self._explained("remove", name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self.path(name))

    def move(self, name: str, *, to: str) -> None:
        """Give a file another name, whole or not at all.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._explained("move", name):
            if self._local:
                Path(self.path(to)).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.path(name), self.path(to))  # noqa: PTH105
            else:
                self._fs.copy(self.path(name), self.path(to))
                self._fs.rm_file(self.path(name))

    def remove_empty_folders(self, folder: str) -> None:
        """Remove a folder and those below it where they are empty. Object stores have none."""
        if not self._local:
            return
        with self._explained("remove", folder):
            for path, _, _ in os.walk(self.path(folder), topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)  # noqa: PTH106 - os.walk gives str

    def check_writable(self) -> str | None:
        """Write, read, create and remove a probe; return a warning, once in a process, where files cannot be created at once.

        Raises:
            CacheError: the store cannot be written, or gives back something else.
        """
        name, known = f"{PROBE}{uuid.uuid4().hex}", self.url in _creating_at_once
        self.write(name, b"probe")
        try:
            if self.read(name) != b"probe":
                raise CacheError(f"{self.url} does not give back what was written to it; use another store for the cache")
        finally:
            self.remove(name)
        if self._local and self.create(name, b"probe"):
            self.remove(name)
        if known or self.creates_at_once:
            return None
        return (
            f"{self.url} cannot create a file only if there is none (S3: If-None-Match; a disk: hard links). Labels stay safe, "
            "since all writers of a file are right; but every commit waits a second, and of two people who set a tag at the same "
            "time both may be told that it is theirs. Use a store that can, or let one job at a time write to this cache"
        )


def _store_again(url: str, creates_at_once: bool | None) -> Store:
    if creates_at_once is not None:
        _creating_at_once.setdefault(url, creates_at_once)
    return Store(url)


def _local_file(name: str, status: os.stat_result) -> StoredFile:
    # A copy that keeps times (rsync, cp -p) sets the first; nothing sets the second but the system's clock.
    return StoredFile(name=name, num_bytes=status.st_size, modified=max(status.st_mtime, status.st_ctime))


def _modified(info: dict[str, Any]) -> float:
    """Return the POSIX time of a file from what a store's client says of it.

    Raises:
        CacheError: it says no time.
    """
    for key in _MODIFIED:
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
    raise CacheError(f"the store does not say when {info.get('name')} was written; give it a lifecycle rule instead of gc")
