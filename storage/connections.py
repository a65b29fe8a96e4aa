"""Open the store of a URL, local or remote; operations on a remote one are tried again when they fail for a moment."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from storage.retries import Health, Patience, ShortAnswerError, retried

_S3 = ("s3", "s3a")
_REQUEST_ATTEMPTS = 3
"""Tries of one request inside the client: an upload in pieces sends one piece again, and not all of them."""
PIECE_BYTES = 16 * 2**20
"""A file of two pieces or more is uploaded to S3 in pieces, and appears when all of them are there."""
_CONCURRENT_PIECES = 4
"""Pieces that are sent at once: what an upload holds beside the file."""

_READING = frozenset({"exists", "find", "get_file", "getxattr", "info", "isdir", "ls", "size"})
_UPLOADING = frozenset({"pipe_file", "put_file"})
_REMOVING = frozenset({"rm", "rm_file"})


_NO_CREDENTIALS = (
    "no credentials for S3 were found: not in the environment, not in ~/.aws, and no role of this machine or container "
    "answered. Give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN where there is one), or AWS_PROFILE with "
    "a profile of ~/.aws (aws configure, aws sso login), or key and secret under s3 in ~/.config/fsspec/conf.json (there "
    '{"s3": {"anon": true}} for a public bucket), or run on a machine or in a container that has a role'
)


class MissingCredentialsError(PermissionError):
    """A store of S3 that is not open to everybody, and nobody says who asks."""


def connect(url: str, *, patience: Patience | None = None) -> tuple[Any, str]:
    """Return the file system of a URL and the path inside it.

    Listings are not kept: they would hide what others commit.

    Raises:
        ImportError: the protocol's package is not installed.
        ValueError: the protocol is unknown.
    """
    protocol = url.split("://", 1)[0] if "://" in url else "file"
    fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **(_s3_options() if protocol in _S3 else {}))
    if isinstance(fs, LocalFileSystem | MemoryFileSystem):
        return fs, path
    return PatientFileSystem(fs, patience=patience or Patience()), path


def _s3_options() -> dict[str, Any]:
    # Options of a call take the place of a person's own in fsspec's configuration, which are to stay.
    own: dict[str, Any] = {}
    for protocol in _S3:
        own |= fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    retries = {"mode": "standard", "total_max_attempts": _REQUEST_ATTEMPTS}
    return {"config_kwargs": {**own, "retries": retries}, "max_concurrency": _CONCURRENT_PIECES}


class PatientFileSystem:
    """An fsspec file system of a remote store whose operations, and reads of files it opens, are tried again.

    Everything else is the file system's own. A forked process, in which clients do not work on, gets a client of its own.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, *, patience: Patience) -> None:
        self._patience = patience
        self._s3 = bool(set(_S3) & {*fs.protocol})
        self._use(fs)

    def _use(self, fs: fsspec.AbstractFileSystem) -> None:
        self._fs, self._process = fs, os.getpid()
        if not hasattr(fs, "decant_health"):
            # fsspec gives the same instance to all that open the same store.
            fs.decant_health = Health()
        if self._s3:
            # It tries dropped connections again without a bound in time; that is done here.
            fs.retries = 1
        # Where s3fs would ask for the size first, and hold a large file twice and a half.
        split = self._s3 and "max_concurrency" in inspect.signature(fs.cat_file).parameters
        self._in_one_request = {"max_concurrency": 1} if split else {}

    def _current(self) -> fsspec.AbstractFileSystem:
        if self._process != os.getpid():
            make, arguments = self._fs.__reduce__()
            self._use(make(*arguments))
        return self._fs

    def __reduce__(self) -> tuple[Callable[..., PatientFileSystem], tuple[Any, ...]]:
        return _again, (self._fs, self._patience)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._current(), name)
        if name in _UPLOADING and self._s3:
            return functools.partial(self._patient(found), chunksize=PIECE_BYTES)
        if name in _READING or name in _UPLOADING or name == "copy":
            return self._patient(found)
        if name in _REMOVING:
            return self._patient(found, done=(FileNotFoundError,))
        return found

    def check_credentials(self, path: str) -> None:
        """Refuse a store of S3 for which no credentials are found; asks the store nothing.

        Raises:
            MissingCredentialsError: there are none; how to give them.
        """
        fs = self._current()
        if self._s3 and not getattr(fs, "anon", False):
            # A signed URL is made without a request, but not without credentials. That it is made says nothing of the store.
            with _credentials_needed():
                fs.sign(f"{path.rstrip('/')}/any")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes of a file, or those of [start, end) that it has.

        Raises:
            FileNotFoundError: there is none.
        """
        return bytes(self._patient(self._whole_range)(path, start, end))

    def _whole_range(self, path: str, start: int | None, end: int | None) -> bytes:
        fs = self._current()
        data: bytes = fs.cat_file(path, start=start, end=end, **self._in_one_request)
        # Who reads from the start may ask for more than there is, and is not made to pay for another request.
        if start and end is not None and len(data) < end - start and start + len(data) < fs.size(path):
            raise ShortAnswerError(f"bytes {start} to {end} of {path} were asked for, {len(data)} bytes came")
        return data

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """Open a file for reading.

        Raises:
            FileNotFoundError: there is none.
        """
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: files of remote stores are opened to be read; write them whole")
        file = self._patient(self._current().open)(path, mode, **options)
        if isinstance(file, AbstractBufferedFile):
            file.cache.fetcher = self._patient(functools.partial(self._fetch, file, file.cache.fetcher))
        return file

    def _fetch(self, file: AbstractBufferedFile, fetch: Callable[[int, int], bytes], start: int, end: int) -> bytes:
        file.fs = self._current()
        data = fetch(start, end)
        if len(data) < min(end, file.size) - start:
            raise ShortAnswerError(f"bytes {start} to {end} of {file.path} were asked for, {len(data)} bytes came")
        return data

    def _patient(self, action: Callable[..., Any], *, done: tuple[type[Exception], ...] = ()) -> Callable[..., Any]:
        @functools.wraps(action)
        def patient(*arguments: Any, **options: Any) -> Any:
            with _credentials_needed():
                return retried(
                    lambda: action(*arguments, **options), patience=self._patience, health=self._fs.decant_health, done=done
                )

        return patient


@contextlib.contextmanager
def _credentials_needed() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "NoCredentialsError":  # botocore's, which a cache on disk does not need
            raise
        raise MissingCredentialsError(errno.EACCES, _NO_CREDENTIALS) from error


def _again(fs: fsspec.AbstractFileSystem, patience: Patience) -> PatientFileSystem:
    return PatientFileSystem(fs, patience=patience)
