"""Which files of a cache are not what was committed, and may be set aside and made anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from storage.cache import Cache, head_name
from storage.errors import CorruptError, FormatError, NewerReleaseError
from storage.hashing import digest, unseal
from storage.label_set import Manifest
from storage.parts import BlockExtent, CommittedTar, Extent, PartRecord
from storage.specs import PartSpec, RequestSpec
from storage.verify import check_tar_bytes, check_tar_rows, tar_digest

_Record = TypeVar("_Record", bound=CommittedTar)


@dataclass(frozen=True, kw_only=True, slots=True)
class DamagedFile:
    """A file that is missing or holds other bytes than were committed.

    Attributes:
        name: in the cache.
        missing: whether there is nothing that could be set aside.
    """

    name: str
    problem: str
    missing: bool


def _read(cache: Cache, name: str) -> bytes | DamagedFile:
    try:
        return cache.store.read(name)
    except FileNotFoundError:
        return DamagedFile(name=name, problem="missing", missing=True)


def name_damage(cache: Cache, *, name: str) -> DamagedFile | None:
    """Return what is wrong with the file of an experiment's name; that there is none is no damage."""
    try:
        cache.find_name(name)
    except FormatError as error:
        return DamagedFile(name=f"names/{name}.json", problem=str(error).split("; ")[0], missing=False)
    return None


def request_damage(cache: Cache, *, request: str) -> DamagedFile | None:
    """Return what is wrong with the file of a request, by its fingerprint."""
    name = f"{cache.request_folder(request)}/spec.json"
    data = _read(cache, name)
    if isinstance(data, DamagedFile):
        return data
    return (
        None if digest(data) == request else DamagedFile(name=name, problem="its sha256 is not its folder's name", missing=False)
    )


def label_set_damage(cache: Cache, *, label_set: str) -> list[DamagedFile]:
    """Return what is wrong with the files of a label set; its parts are not looked at.

    Raises:
        FormatError: the manifest is whole, but of a release this one cannot read: that is no damage.
    """
    folder = f"label_sets/{label_set}"
    name = f"{folder}/manifest.json"
    data = _read(cache, name)
    if isinstance(data, DamagedFile):
        return [data]
    body = unseal(data)
    if body is None:
        return [DamagedFile(name=name, problem="its sha256 differs", missing=False)]
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        raise FormatError(f"{cache.store.url}/{name}: not a manifest this release can read: {error}") from error
    if manifest.id != label_set:
        return [DamagedFile(name=name, problem=f"it is the manifest of {manifest.id}", missing=False)]
    found = []
    for file, sha256 in ((manifest.parts_file, manifest.parts_sha256), (manifest.class_means_file, manifest.class_means_sha256)):
        if file is None:
            continue
        data = _read(cache, f"{folder}/{file}")
        if isinstance(data, DamagedFile):
            found.append(data)
        elif digest(data) != sha256:
            found.append(DamagedFile(name=f"{folder}/{file}", problem="its sha256 is not the manifest's", missing=False))
    return found


def tar_damage(cache: Cache, *, path: str, num_bytes: int, tar_sha256: str) -> DamagedFile | None:
    """Return what is wrong with a tar.

    Raises:
        CacheError: the store failed, which says nothing about the bytes.
    """
    try:
        check_tar_bytes(cache, path=path, num_bytes=num_bytes, tar_sha256=tar_sha256)
    except CorruptError as error:
        problem = str(error).removeprefix(f"{cache.store.url}/{path}: ")
        return DamagedFile(name=path, problem=problem, missing=not cache.store.exists(path))
    return None


def rows_damage(
    cache: Cache, *, path: str, num_samples: int, samples: Extent, blocks: Sequence[BlockExtent], request: RequestSpec
) -> DamagedFile | None:
    """Return what is wrong with the rows of a tar whose bytes are whole: a writer at fault, not damage. See `check_tar_rows`.

    Raises:
        NewerReleaseError: rows of a release this one cannot read: that is no damage.
        CacheError: the store failed, which says nothing about the bytes.
    """
    try:
        check_tar_rows(cache, path=path, num_samples=num_samples, samples=samples, blocks=blocks, request=request)
    except NewerReleaseError:
        raise
    except CorruptError as error:
        return DamagedFile(name=path, problem=str(error).removeprefix(f"{cache.store.url}/{path}: "), missing=False)
    return None


def head_damage(cache: Cache, *, sha256: str) -> DamagedFile | None:
    """Return what is wrong with the file of a teacher's head.

    Raises:
        NewerReleaseError: a head of a release this one cannot read: that is no damage.
    """
    name = head_name(sha256)
    try:
        cache.head(sha256)
    except NewerReleaseError:
        raise
    except CorruptError as error:
        problem = str(error).removeprefix(f"{cache.store.url}/{name}").lstrip(": ").split("; ")[0]
        return DamagedFile(name=name, problem=problem, missing=not cache.store.exists(name))
    return None


def nameless_tar_damage(cache: Cache, *, path: str) -> DamagedFile | None:
    """Return what is wrong with a tar of which no record is left: its name holds the first digits of its sha256."""
    said, found = path.rsplit(".", 2)[-2], tar_digest(cache, path=path)
    problem = f"sha256 is {found[:16]}, its name says {said}"
    return None if found.startswith(said) else DamagedFile(name=path, problem=problem, missing=False)


def read_record(cache: Cache, *, part: PartSpec) -> PartRecord | DamagedFile:
    """Return the record of a part, or what is wrong with its file.

    Raises:
        FormatError: the record is whole, but of a release this one cannot read: that is no damage.
    """
    name = cache.record_name(part)
    data = _read(cache, name)
    if isinstance(data, DamagedFile):
        return data
    if unseal(data) is None:
        return DamagedFile(name=name, problem="its sha256 differs", missing=False)
    record = PartRecord.from_bytes(data, origin=f"{cache.store.url}/{name}")
    if record.part != part:
        return DamagedFile(name=name, problem=f"it is the record of {record.part.name}", missing=False)
    return record


class ForgivingCache(Cache):
    """A cache that takes a part whose record is damaged for one that is not there, so that a plan can be made over damage."""

    def find_record(self, part: PartSpec, *, kind: type[_Record]) -> _Record | None:
        """Return the record of a part, if record and tar are there and the record is whole."""
        if isinstance(read_record(self, part=part), DamagedFile):
            return None
        return super().find_record(part, kind=kind)
