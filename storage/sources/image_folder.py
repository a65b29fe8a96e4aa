"""Pictures in class folders, or in any folders without classes."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from storage.config.source import ImageFolderConfig
from storage.errors import DuplicateKeyError, SampleError, SourceError
from storage.naming import did_you_mean
from storage.sources.base import NO_LABEL, Sample, SourceUnit
from storage.sources.checks import key_problem, load_classes
from storage.sources.files import open_store, reaching, unit_token, walk
from storage.sources.unit_cuts import unit_ranges

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff")
"""Files with other endings are no pictures and are skipped; upper case counts the same."""

READ_THREADS = 8
READ_AHEAD = 2 * READ_THREADS

_FILE_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENOTDIR})


class ImageFolderSource:
    """Pictures under one or more folders, in order of their keys; a key is the path below its folder, with extension.

    With labels, the first folder of a key is its class, and the label is the class's place in the config's `classes` or, without
    these, among the sorted folders of all paths. Names with a leading dot and files that are no pictures (`EXTENSIONS`) are
    skipped; links are followed. The listing is held in memory, about 350 bytes a picture.
    """

    def __init__(self, config: ImageFolderConfig) -> None:
        self._config = config
        self._classes = load_classes(config.classes)
        self._listed = self._classes is not None or not config.labelled

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in label order; None for a source without labels. Lists the folders if nothing else knows them."""
        if not self._listed:
            self.units()
        return self._classes

    def units(self) -> list[SourceUnit]:
        """List the pictures, at most `unit_size` a unit, in key order within each path; names count pictures over all paths.

        Raises:
            SourceError: nothing is found, a class folder is unknown or empty, a picture lies outside the class folders.
            DuplicateKeyError: two paths hold the same key.
        """
        roots = [self._config.path] if isinstance(self._config.path, str) else list(self._config.path)
        listings = [_list_root(root, labelled=self._config.labelled) for root in roots]
        _refuse_duplicates(roots, listings)
        labels = self._labels_by_folder(roots, listings)
        units: list[SourceUnit] = []
        start = 0
        for root, listing in zip(roots, listings, strict=True):
            fs, path = open_store(root)
            for place in unit_ranges(listing.keys, unit_size=self._config.unit_size, ends=self._config.unit_ends):
                keys = listing.keys[place.start : place.stop]
                picture_labels = [labels[key.split("/", 1)[0]] if labels is not None else NO_LABEL for key in keys]
                units.append(
                    SourceUnit(
                        name=f"{start:05d}-{start + len(keys):05d}",
                        locator={"root": fs.unstrip_protocol(path), "files": keys, "labels": picture_labels},
                        stat_token=unit_token([keys, picture_labels], tokens=[listing.tokens[key] for key in keys]),
                    )
                )
                start += len(keys)
        return units

    def _labels_by_folder(self, roots: Sequence[str], listings: Sequence[_Listing]) -> dict[str, int] | None:
        if not self._config.labelled:
            return None
        found = {folder: root for root, listing in zip(roots, listings, strict=True) for folder in listing.class_folders}
        if self._config.classes is None:
            filled = {key.split("/", 1)[0] for listing in listings for key in listing.keys}
            for folder in sorted(found.keys() - filled):
                raise SourceError(
                    f"class folder {folder!r} in {found[folder]} holds no picture, and stores without folders would not show it, "
                    "so labels would shift; remove the folder or give the class names in source.classes"
                )
            self._classes = tuple(sorted(found))
            self._listed = True
        names = self._classes or ()
        for folder in sorted(found.keys() - set(names)):
            raise SourceError(
                f"class folder {folder!r} in {found[folder]} is not among the {len(names)} names of source.classes, so its "
                f"pictures have no label.{did_you_mean(folder, names)}"
            )
        return {name: label for label, name in enumerate(names)}

    def read(self, unit: SourceUnit) -> Iterator[Sample]:
        """Yield a unit's pictures in order; a few are fetched ahead by threads.

        Raises:
            SourceError: the folder has vanished or the store cannot be reached.
        """
        fs, root = open_store(unit.locator["root"])
        keys, labels = unit.locator["files"], unit.locator["labels"]
        pending: deque[Future[tuple[bytes | None, str | None]]] = deque()
        with ThreadPoolExecutor(READ_THREADS) as pool:
            try:
                for position, (key, label) in enumerate(zip(keys, labels, strict=True)):
                    for ahead in range(position + len(pending), min(position + READ_AHEAD, len(keys))):
                        pending.append(pool.submit(_fetch, fs, root=root, key=keys[ahead]))
                    image, error = pending.popleft().result()
                    yield Sample(position=position, key=key, label=label, data=image, error=error)
            finally:
                for future in pending:
                    future.cancel()

    def open(self, unit: SourceUnit) -> ImageFolderReader:
        """Open a unit for random access; each picture is fetched on its own."""
        return ImageFolderReader(unit.locator)


class ImageFolderReader:
    """Random access to one unit of pictures in folders."""

    def __init__(self, locator: dict[str, Any]) -> None:
        self._fs, self._root = open_store(locator["root"])
        self._keys: list[str] = locator["files"]
        self._labels = np.asarray(locator["labels"], dtype=np.int64)

    @property
    def keys(self) -> Sequence[str]:
        """Keys in position order."""
        return self._keys

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Hard labels in position order, NO_LABEL where there is none."""
        return self._labels

    def read(self, position: int) -> bytes:
        """Return a picture's bytes.

        Raises:
            SampleError: the file has vanished or may not be read.
            SourceError: the folder has vanished or the store cannot be reached.
        """
        if not 0 <= position < len(self._keys):
            raise IndexError(f"position {position} is not among the {len(self._keys)} samples of the unit")
        image, error = _fetch(self._fs, root=self._root, key=self._keys[position])
        if image is None:
            raise SampleError(f"{self._keys[position]}: {error}")
        return image

    def close(self) -> None:
        """Release files; none stay open between reads."""


class _Listing:
    """What one root holds: keys in order, their files' change tokens, and its top folders."""

    __slots__ = ("class_folders", "keys", "tokens")

    def __init__(self, *, tokens: dict[str, str], class_folders: set[str]) -> None:
        self.tokens = tokens
        self.keys = sorted(tokens)
        self.class_folders = class_folders


def _list_root(root: str, *, labelled: bool) -> _Listing:
    fs, path = open_store(root)
    with reaching(root, action="list"):
        if fs.info(path)["type"] != "directory":
            raise SourceError(f"{root} is a file, so it holds no folders of pictures; give the folder, or another source.kind")
    tokens: dict[str, str] = {}
    class_folders: set[str] = set()
    for folder in walk(fs, path):
        if folder.relative:
            class_folders.add(folder.relative.split("/", 1)[0])
        for name, file in folder.files.items():
            if not name.lower().endswith(EXTENSIONS):
                continue
            key = f"{folder.relative}/{name}".lstrip("/")
            if (problem := key_problem(key)) is not None:
                raise SourceError(f"{root}: the file name {key!r} cannot be a key: {problem}; rename the file")
            if labelled and not folder.relative:
                raise SourceError(
                    f"{root}: picture {name!r} lies outside the class folders, so it has no label; move it into one, or set "
                    "source.labelled: false"
                )
            tokens[key] = file.token
    if not tokens:
        raise SourceError(
            f"{root} holds no picture, so there is nothing to read; pictures are files that end in {', '.join(EXTENSIONS)}"
        )
    return _Listing(tokens=tokens, class_folders=class_folders)


def _refuse_duplicates(roots: Sequence[str], listings: Sequence[_Listing]) -> None:
    for second in range(1, len(roots)):
        for first in range(second):
            both = listings[first].tokens.keys() & listings[second].tokens.keys()
            if both:
                key = min(both)
                raise DuplicateKeyError(
                    f"key {key!r} is in both {roots[first]} and {roots[second]} (and {len(both) - 1} more such keys), so the "
                    "samples could not be told apart; give the paths' common parent folder or rename the files"
                )


def _fetch(fs: AbstractFileSystem, *, root: str, key: str) -> tuple[bytes | None, str | None]:
    path = f"{root.rstrip('/')}/{key}"
    with reaching(fs.unstrip_protocol(path), action="read"):
        try:
            return fs.cat_file(path), None
        except OSError as error:
            return None, file_problem(error, fs=fs, root=root)


def file_problem(error: OSError, *, fs: AbstractFileSystem, root: str) -> str:
    """Return what is wrong with one file that could not be read; raise the error again if it is not about that file.

    Args:
        error: as the store raised it.
        fs: the store.
        root: path of the folder that holds the files.

    Raises:
        SourceError: the folder is gone.
    """
    if isinstance(error, FileNotFoundError) and not fs.exists(root):
        raise SourceError(
            f"{fs.unstrip_protocol(root)} has vanished, so none of its files can be read; mount or restore the folder"
        ) from error
    # A remote store also answers with PermissionError when credentials expire: that is not the file's fault.
    if isinstance(error, FileNotFoundError) or (isinstance(fs, LocalFileSystem) and error.errno in _FILE_ERRNOS):
        return f"the file cannot be read: {type(error).__name__}"
    raise error
