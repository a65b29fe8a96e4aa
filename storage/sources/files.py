"""Reach files through fsspec: open a store, walk a tree, expand patterns, tell whether a file has changed.

A source must see what is there now, so no listings are kept; what fails for a moment in a remote store is tried again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import xxhash
from braceexpand import braceexpand
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from storage.connections import MissingCredentialsError, connect
from storage.errors import DecantError, SourceError
from storage.hashing import fingerprint

LISTING_THREADS = 16
READ_BLOCK_BYTES = 8 * 2**20

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_GLOB = re.compile(r"[*?\[]")
_CHANGE_FIELDS = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "blob_id",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
    "ino",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """One file of a store.

    Attributes:
        url: full URL; opens the file from any working directory.
        name: path below what the source's path names: the folder, or the part before the first wildcard; of a file that is named
            itself, its own name.
        size_bytes: its size.
        token: changes when the file changes; empty where the store tells neither time nor etag.
    """

    url: str
    name: str
    size_bytes: int
    token: str

    @property
    def root(self) -> str:
        """URL of what `name` is relative to."""
        return self.url.removesuffix(self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """One folder of a tree: its path relative to the root ("" for the root), and its files by name."""

    relative: str
    files: dict[str, StoredFile]


@contextmanager
def reaching(url: str, *, action: str) -> Iterator[None]:
    """Turn whatever a store raises into a SourceError that names the URL."""
    try:
        yield
    except (DecantError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise SourceError(f"cannot {action} {url}: it does not exist; check the path in the source's config") from error
    except MissingCredentialsError as error:
        raise SourceError(f"cannot {action} {url}: {error.strerror}") from error
    except Exception as error:  # clients of stores raise their own exceptions, which share no base class
        raise SourceError(
            f"cannot {action} {url}: {type(error).__name__}: {error}; check the path, the credentials and the endpoint"
        ) from error


def open_store(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URL and the path inside it.

    Raises:
        SourceError: the store's client is not installed, or the protocol is unknown.
    """
    protocol = url.split("://", 1)[0]
    try:
        fs, path = connect(url)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'decant[{extra}]'" if extra is not None else f"install what it asks for: {error}"
        raise SourceError(f"{url} cannot be reached: the client for {protocol}:// is not installed; {remedy}") from error
    except ValueError as error:
        raise SourceError(
            f"{url} cannot be reached: {error}; use a local path, s3://, gs:// or another protocol of fsspec"
        ) from error
    return fs, path


def change_token(info: dict[str, Any]) -> str:
    """Return 16 hex digits over a file's size and change marks, or "" where the store gives no mark."""
    marks = [f"{field}={info[field]}" for field in _CHANGE_FIELDS if info.get(field) is not None]
    return xxhash.xxh3_64_hexdigest("|".join([str(info["size"]), *marks]).encode()) if marks else ""


def unit_token(identity: Any, *, tokens: Iterable[str]) -> str:
    """Return the stat token of a unit: a hash over how it is read and the tokens of its files, or "" if a file has none.

    Args:
        identity: JSON data on which the unit's samples depend besides file contents (fields, columns, labels).
        tokens: `StoredFile.token` of every file behind the unit, in order.
    """
    found = list(tokens)
    return fingerprint([identity, found]) if all(found) else ""


def _stored(url: str, *, info: dict[str, Any]) -> StoredFile:
    return StoredFile(url=url, name=url.rsplit("/", 1)[-1], size_bytes=info["size"] or 0, token=change_token(info))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Visit:
    path: str
    relative: str
    real: str
    above: frozenset[str]


def _list_folder(fs: AbstractFileSystem, visit: _Visit) -> tuple[Folder, list[_Visit]]:
    files: dict[str, StoredFile] = {}
    below: list[_Visit] = []
    url = fs.unstrip_protocol(visit.path)
    base = url if url.endswith("/") else f"{url}/"
    for entry in fs.ls(visit.path, detail=True):
        path = entry["name"].rstrip("/")
        name = path.rsplit("/", 1)[-1]
        if path == visit.path.rstrip("/") or name.startswith("."):
            continue
        info, real = entry, f"{visit.real}/{name}"
        if entry.get("islink"):
            real = os.path.realpath(path)
            try:
                info = fs.info(path)
            except OSError:  # it leads nowhere: a file that cannot be read
                info = {**entry, "type": "file"}
        if info["type"] == "file":
            files[name] = _stored(f"{base}{name}", info=info)
        if info["type"] != "directory":
            continue
        if real in visit.above:
            raise SourceError(f"folder {path} is a link to {real}, which holds it, so the source never ends; remove the link")
        below.append(_Visit(path=path, relative=f"{visit.relative}/{name}".lstrip("/"), real=real, above=visit.above | {real}))
    return Folder(relative=visit.relative, files=files), below


def walk(fs: AbstractFileSystem, root: str, *, max_depth: int | None = None) -> Iterator[Folder]:
    """Yield every folder under a root, level by level, following links; hidden names (with a leading dot) are left out.

    Raises:
        SourceError: the root does not exist or cannot be listed, or a link leads back to a folder that holds it.
    """
    url = fs.unstrip_protocol(root)
    with reaching(url, action="list"), ThreadPoolExecutor(LISTING_THREADS) as pool:
        real = os.path.realpath(root) if isinstance(fs, LocalFileSystem) else root
        level = [_Visit(path=root, relative="", real=real, above=frozenset([real]))]
        depth = 0
        while level and (max_depth is None or depth < max_depth):
            following: list[_Visit] = []
            for folder, below in pool.map(lambda visit: _list_folder(fs, visit), level):
                yield folder
                following += below
            level = following
            depth += 1


def _matching(fs: AbstractFileSystem, pattern: str) -> list[StoredFile]:
    parts = pattern.split("/")
    first = next(position for position, part in enumerate(parts) if _GLOB.search(part))
    root, rest = "/".join(parts[:first]), "/".join(parts[first:])
    matches = re.compile(glob_translate(rest)).match
    depth = None if "**" in rest else len(parts) - first
    found = [
        (f"{folder.relative}/{name}".lstrip("/"), file)
        for folder in walk(fs, root or "/", max_depth=depth)
        for name, file in folder.files.items()
    ]
    found.sort(key=lambda item: item[0])
    return [replace(file, name=relative) for relative, file in found if matches(relative)]


def _in_folder(fs: AbstractFileSystem, root: str, *, suffixes: Sequence[str]) -> list[StoredFile]:
    found = [
        (f"{folder.relative}/{name}".lstrip("/"), file)
        for folder in walk(fs, root)
        for name, file in folder.files.items()
        if name.lower().endswith(tuple(suffixes))
    ]
    found.sort(key=lambda item: item[0])
    return [replace(file, name=relative) for relative, file in found]


def _expand_one(url: str, *, suffixes: Sequence[str]) -> list[StoredFile]:
    fs, path = open_store(url)
    with reaching(url, action="list"):
        if _GLOB.search(path) and not fs.exists(path):
            found = _matching(fs, path)
            problem = "no file matches"
        else:
            info = fs.info(path)
            if info["type"] != "directory":
                return [_stored(fs.unstrip_protocol(path), info=info)]
            found = _in_folder(fs, path, suffixes=suffixes)
            problem = f"the folder holds no file that ends in {', '.join(suffixes)}"
    if not found:
        raise SourceError(f"{url}: {problem}, so the source would be empty; check the path in the source's config")
    return found


def _braces(url: str) -> list[str]:
    if "{" not in url:
        return [url]
    fs, path = open_store(url)
    with reaching(url, action="look for"):
        if fs.exists(path):
            return [url]
    try:
        return list(braceexpand(url))
    except ValueError as error:
        raise SourceError(f"{url}: {error}, so it names no files; write braces as {{000..127}} or {{train,val}}") from error


def expand_files(paths: str | Sequence[str], *, suffixes: Sequence[str]) -> list[StoredFile]:
    """Return the files that paths name, in order: braces as written, globs and folders sorted.

    Args:
        paths: paths or URLs with brace (`{000..127}`) and glob (`*`, `?`, `[]`, `**`) patterns; a folder stands for the files in
            it and below it. A name that exists as written is not a pattern.
        suffixes: which files of a folder are taken, lower case.

    Raises:
        SourceError: a path or pattern finds nothing, or two name the same file.
    """
    urls = [url for path in ([paths] if isinstance(paths, str) else paths) for url in _braces(path)]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        files = [file for found in pool.map(lambda url: _expand_one(url, suffixes=suffixes), urls) for file in found]
    seen: set[str] = set()
    for file in files:
        if file.url in seen:
            raise SourceError(f"{file.url} is named twice by the source's path, which would double its samples; name it once")
        seen.add(file.url)
    return files


def unit_names(files: Sequence[StoredFile]) -> list[str]:
    """Return a name for each file: its own where these are unique, else its path below the folder common to all."""
    bases = [file.url.rsplit("/", 1)[-1] for file in files]
    if len(set(bases)) == len(bases):
        return bases
    parts = [file.url.split("/") for file in files]
    shortest = min(len(part) for part in parts) - 1
    common = next((depth for depth in range(shortest) if len({part[depth] for part in parts}) > 1), shortest)
    return ["/".join(part[common:]) for part in parts]
