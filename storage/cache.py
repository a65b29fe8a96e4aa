"""The cache: requests with their parts, and label sets. Layout in docs/format.md.

requests/<fingerprint>/spec.json         the request, in full
requests/<fingerprint>/<part>.json       part record; `<part>.<digest>.tar` beside it
heads/<sha256>.head                      a teacher's frozen head, where hidden states stand for logits
label_sets/<id>/                         manifest.json, parts.parquet, class_means.block
names/<name>.json                        the newest label set of an experiment's name, or a tag that people set
sources/, teachers/                      memos that save re-reading; losing them costs time only
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from storage.errors import CacheError, CorruptError, FormatError, MismatchError, NewerReleaseError
from storage.filesystem import Store
from storage.hashing import canonical_json, digest, seal, unseal
from storage.heads import FrozenHead, decode_head, encode_head
from storage.mapping import map_ahead
from storage.part_listing import PartListing
from storage.parts import CommittedTar, Extent, PartRecord, check_extent
from storage.remedies import EITHER_AGAIN, EITHER_REPAIR, LABEL_AGAIN, how_to_mend
from storage.specs import PartSpec, RequestSpec

_Record = TypeVar("_Record", bound=CommittedTar)
_NAME = re.compile(r"[\w-][\w.-]{0,192}", re.ASCII)
"""As long as an experiment's name of 128 letters, a dot, and the name of a target of 64."""
_NUM_READERS = 32
"""Records read from a remote store at a time: an answer takes tens of milliseconds, whatever its size."""
_HEAD_AGAIN = f"{LABEL_AGAIN}, which writes the teacher's head anew"
_LABEL_SET_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedLabelSet:
    """What a name points at.

    Attributes:
        label_set: id of the label set.
        is_tag: people set the name and only they move it; otherwise it is an experiment's and follows its newest label set.
    """

    label_set: str
    is_tag: bool

    def to_bytes(self, *, name: str) -> bytes:
        """Return the stored form: canonical JSON that says whose name it is, then the sha256 of it on a line of its own."""
        tag = {"tag": True} if self.is_tag else {}
        return seal(canonical_json({"label_set": self.label_set, "name": name, **tag}))


@dataclass(frozen=True)
class Cache:
    """Parts and label sets in one store. Picklable."""

    store: Store

    @classmethod
    def at(cls, url: str) -> Cache:
        """Return the cache at a local path or fsspec URL; nothing is created."""
        return cls(Store(url))

    @classmethod
    def existing(cls, url: str) -> Cache:
        """Return the cache at a local path or fsspec URL that holds something.

        Raises:
            CacheError: nothing is there.
        """
        cache = cls.at(url)
        if not cache.store.folders(""):
            raise CacheError(f"{url} holds nothing, so no cache is there; check the path, or make one with `decant label`")
        return cache

    def request_folder(self, request: str) -> str:
        """Return the folder of a request by its fingerprint."""
        return f"requests/{request}"

    def add_request(self, request: RequestSpec) -> str:
        """Write a request's spec if it is new and return its fingerprint."""
        fingerprint = request.fingerprint()
        self.store.create(f"{self.request_folder(fingerprint)}/spec.json", canonical_json(request.to_json()))
        return fingerprint

    def request(self, fingerprint: str) -> RequestSpec:
        """Return a request by its fingerprint.

        Raises:
            CorruptError: it is missing, does not have this fingerprint, or is of a release this one cannot read.
        """
        name = f"{self.request_folder(fingerprint)}/spec.json"
        origin = f"{self.store.url}/{name}"
        try:
            data = self.store.read(name)
        except FileNotFoundError as error:
            raise CorruptError(f"{origin} is missing; {EITHER_AGAIN}") from error
        if digest(data) != fingerprint:
            raise CorruptError(f"{origin} is damaged (its sha256 is not its folder's name); {EITHER_REPAIR}")
        try:
            return RequestSpec.model_validate_json(data)
        except ValueError as error:
            raise FormatError(f"{origin}: not a request this release can read: {error}") from error

    def requests(self) -> Iterator[tuple[str, RequestSpec]]:
        """Yield the requests of the cache with their fingerprints; those that cannot be read are left out."""
        for fingerprint in self.store.folders("requests"):
            with contextlib.suppress(CorruptError, FormatError):
                yield fingerprint, self.request(fingerprint)

    def record_name(self, part: PartSpec) -> str:
        """Return the name of a part's record."""
        return f"{self.request_folder(part.request)}/{part.name}.json"

    def find_part(self, part: PartSpec) -> PartRecord | None:
        """Return the record of a part, if it was committed and its tar is there with the committed size.

        Raises:
            FormatError: a record this release cannot read.
            MismatchError: the record is of another part.
        """
        return self.find_record(part, kind=PartRecord)

    def find_record(self, part: PartSpec, *, kind: type[_Record]) -> _Record | None:
        """Return the record of a part as `find_part` does, or what a plan needs of it.

        Raises:
            FormatError: a record this release cannot read.
            MismatchError: the record is of another part.
        """
        name = self.record_name(part)
        try:
            record = kind.from_bytes(self.store.read(name), origin=f"{self.store.url}/{name}")
        except FileNotFoundError:
            return None
        if record.part != part:
            raise MismatchError(f"{self.store.url}/{name} is the record of {record.part.name}; the file was moved or renamed")
        try:
            whole = self.store.size(self.tar_name(record)) == record.tar_bytes
        except FileNotFoundError:
            whole = False
        return record if whole else None

    def are_committed(self, parts: Iterable[PartSpec]) -> Iterator[bool]:
        """Yield, for each part in order, whether `find_part` finds it."""
        found = map_ahead(partial(self.find_record, kind=CommittedTar), parts, num_threads=self._num_readers)
        return (record is not None for record in found)

    def find_parts(self, parts: Iterable[PartSpec]) -> Iterator[PartRecord | None]:
        """Yield what `find_part` returns for each part, in order. Records of a remote store are read ahead, many at a time."""
        return map_ahead(self.find_part, parts, num_threads=self._num_readers)

    @property
    def _num_readers(self) -> int:
        return 1 if self.store.is_near else _NUM_READERS

    def tar_name(self, record: CommittedTar) -> str:
        """Return the name of a part's tar."""
        return f"{self.request_folder(record.part.request)}/{record.tar_name}"

    def commit_part(self, data: bytes, *, record: PartRecord) -> PartRecord:
        """Publish a part: the tar under a name that holds its digest, then the record if there is none.

        Two writers of one part are both right; the first record counts, and is returned. A record whose tar was lost or truncated
        is replaced.
        """
        self.store.write(self.tar_name(record), data)
        if self.store.create(self.record_name(record.part), record.to_bytes()):
            return record
        first = self.find_part(record.part)
        if first is None:
            self.store.write(self.record_name(record.part), record.to_bytes())
            return record
        # Where creating takes turns, a writer that stalled may still put a record over the first one.
        others = {first.tar_name, *(earlier.tar_name for earlier in first.earlier)}
        if self.store.creates_at_once and record.tar_name not in others:
            self.store.remove(self.tar_name(record))
        return first

    def replace_part(self, data: bytes, *, record: PartRecord, replaces: str) -> PartRecord:
        """Publish a part in the place of one whose rows it keeps: the tar first, then the record over the old one.

        The old tar stays, since label sets may name it. If the record is not that of `replaces` any more, that one counts, and is
        returned.
        """
        current = self.find_part(record.part)
        if current is not None and current.tar_name != replaces:
            return current
        self.store.write(self.tar_name(record), data)
        self.store.write(self.record_name(record.part), record.to_bytes())
        return record

    def covering_parts(self, *, request: str, unit_digests: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        """Return, for each unit digest, the committed view ranges [first, last) of its parts, in order.

        From a listing: a hint that `find_part` must confirm before anything is built on it.
        """
        return PartListing.of(self.store, self.request_folder(request)).ranges(unit_digests)

    def read_extent(self, tar_path: str, extent: Extent, *, imported: bool = False) -> bytes:
        """Return a block of a part, checked against what was committed.

        Args:
            imported: whether the labels were, for messages.

        Raises:
            CorruptError: the tar is missing, too short, or holds other bytes.
        """
        origin = f"{self.store.url}/{tar_path}"
        try:
            data = self.store.read_range(tar_path, start=extent.offset, num_bytes=extent.num_bytes)
        except FileNotFoundError as error:
            raise CorruptError(f"{origin} is missing; {how_to_mend(imported=imported, missing=True)}") from error
        check_extent(data, extent, origin=origin, imported=imported)
        return data

    def add_head(self, head: FrozenHead) -> str:
        """Write a head if it is new, or if the one that is there is damaged, and return its digest."""
        sha256 = head.sha256()
        data = encode_head(head)
        if not self.store.create(head_name(sha256), data):
            try:
                self.head(sha256)
            except CorruptError:
                self.store.write(head_name(sha256), data)
        return sha256

    def head(self, sha256: str) -> FrozenHead:
        """Return a head by its digest.

        Raises:
            CorruptError: it is missing, damaged, or of a release this one cannot read.
        """
        origin = f"{self.store.url}/{head_name(sha256)}"
        try:
            head = decode_head(self.store.read(head_name(sha256)), origin=origin)
        except FileNotFoundError as error:
            raise CorruptError(f"{origin} is missing; {_HEAD_AGAIN}") from error
        except NewerReleaseError:
            raise
        except FormatError as error:
            raise FormatError(f"{error}; {_HEAD_AGAIN}") from error
        if head.sha256() != sha256:
            raise CorruptError(f"{origin} holds another head (its sha256 is not its name); {_HEAD_AGAIN}")
        return head

    def find_name(self, name: str) -> NamedLabelSet | None:
        """Return what a name points at, or None if there is no such name.

        Raises:
            FormatError: its file is damaged.
        """
        if not _NAME.fullmatch(name):
            return None
        file = f"names/{name}.json"
        try:
            data = self.store.read(file)
        except FileNotFoundError:
            return None
        origin = f"{self.store.url}/{file}"
        try:
            body = unseal(data)
            if body is None:
                raise ValueError("its sha256 differs")
            found = json.loads(body)
            label_set, is_tag = found["label_set"], found.get("tag", False)
            if not isinstance(label_set, str) or not _LABEL_SET_ID.fullmatch(label_set) or not isinstance(is_tag, bool):
                raise ValueError(f"label_set {label_set!r}, tag {is_tag!r}")
            if found["name"] != name:
                raise ValueError(f"it is the file of the name {found['name']!r}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(
                f"{origin}: not a name this release can read: {error!r}; remove it and run decant label or decant cache tag "
                "again, or the import"
            ) from error
        return NamedLabelSet(label_set=label_set, is_tag=is_tag)

    def read_names(self) -> tuple[dict[str, NamedLabelSet], list[str]]:
        """Return what every name points at, and one line for each name whose file is damaged."""
        found: dict[str, NamedLabelSet] = {}
        problems: list[str] = []
        for file in self.store.names("names"):
            name = file.removeprefix("names/").removesuffix(".json")
            try:
                named = self.find_name(name)
            except FormatError as error:
                problems.append(str(error))
                continue
            if named is not None:
                found[name] = named
        return found, problems

    def names(self) -> dict[str, str]:
        """Return label set ids by the names that point at them; names whose files are damaged are left out."""
        return {name: named.label_set for name, named in self.read_names()[0].items()}

    def point_name(self, name: str, *, label_set: str) -> None:
        """Let an experiment's name point at a label set. A tag that points at it already stays a tag.

        Raises:
            MismatchError: the name is a tag that points at another label set.
        """
        file, data = f"names/{name}.json", NamedLabelSet(label_set=label_set, is_tag=False).to_bytes(name=name)
        if self.store.create(file, data):
            return
        try:
            named = self.find_name(name)
        except FormatError:
            named = None
        if named is not None and named.is_tag:
            if named.label_set != label_set:
                raise MismatchError(
                    f"{name!r} is a tag of {self.store.url} that points at {named.label_set}, and only people move tags: it was "
                    f"not moved to {label_set}, which is committed and can be opened by this id. Give the experiment another "
                    f"name, or take the tag away with `decant cache tag {self.store.url} {named.label_set} {name} --delete`"
                )
            return
        self.store.write(file, data)

    def label_set_ids(self) -> Iterator[str]:
        """Yield the ids of committed label sets."""
        for name in self.store.names("label_sets"):
            if name.endswith("/manifest.json"):
                yield name.split("/")[1]


def head_name(sha256: str) -> str:
    """Return the name of the file of a head by its digest."""
    return f"heads/{sha256}.head"
