"""The cache: requests with their parts, and label sets. Layout in docs/format.md.

requests/<fingerprint>/spec.json         the request, in full
requests/<fingerprint>/<part>.json       part record; `<part>.<digest>.tar` beside it
label_sets/<id>/                         manifest.json, parts.parquet, class_means.block
names/<name>.json                        the newest label set of an experiment's name
sources/, teachers/                      memos that save re-reading; losing them costs time only
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from storage.errors import CorruptError, FormatError, MismatchError
from storage.filesystem import Store
from storage.hashing import canonical_json, digest
from storage.parts import Extent, PartRecord, check_extent
from storage.specs import PartSpec, RequestSpec


@dataclass(frozen=True)
class Cache:
    """Parts and label sets in one store. Picklable."""

    store: Store

    @classmethod
    def at(cls, url: str) -> Cache:
        """Return the cache at a local path or fsspec URL; nothing is created."""
        return cls(Store(url))

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
            raise CorruptError(f"{origin} is missing; run decant label again") from error
        if digest(data) != fingerprint:
            raise CorruptError(f"{origin} is damaged (its sha256 is not its folder's name); remove it and run decant label again")
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
        name = self.record_name(part)
        try:
            record = PartRecord.from_bytes(self.store.read(name), origin=f"{self.store.url}/{name}")
        except FileNotFoundError:
            return None
        if record.part != part:
            raise MismatchError(f"{self.store.url}/{name} is the record of {record.part.name}; the file was moved or renamed")
        try:
            whole = self.store.size(self.tar_name(record)) == record.tar_bytes
        except FileNotFoundError:
            whole = False
        return record if whole else None

    def tar_name(self, record: PartRecord) -> str:
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
        if first.tar_name != record.tar_name:
            self.store.remove(self.tar_name(record))
        return first

    def covering_parts(self, *, request: str, unit_digests: Iterable[str]) -> dict[str, list[tuple[int, int]]]:
        """Return, for each unit digest, the committed view ranges [first, last) of its parts, in order.

        From a listing: a hint that `find_part` must confirm before anything is built on it.
        """
        wanted = {unit_digest[:32]: unit_digest for unit_digest in unit_digests}
        found: dict[str, list[tuple[int, int]]] = {}
        for name in self.store.names(self.request_folder(request)):
            stem = name.rsplit("/", 1)[-1]
            if not stem.endswith(".json") or stem == "spec.json":
                continue
            unit, _, views = stem.removesuffix(".json").partition(".v")
            first, _, last = views.partition("-")
            if unit in wanted and first.isdecimal() and last.isdecimal():
                found.setdefault(wanted[unit], []).append((int(first), int(last)))
        return {unit: sorted(ranges) for unit, ranges in found.items()}

    def read_extent(self, tar_path: str, extent: Extent) -> bytes:
        """Return a block of a part, checked against what was committed.

        Raises:
            CorruptError: the tar is missing, too short, or holds other bytes.
        """
        origin = f"{self.store.url}/{tar_path}"
        try:
            data = self.store.read_range(tar_path, start=extent.offset, num_bytes=extent.num_bytes)
        except FileNotFoundError as error:
            raise CorruptError(f"{origin} is missing; run decant label again to make it anew") from error
        check_extent(data, extent, origin=origin)
        return data

    def names(self) -> dict[str, str]:
        """Return label set ids by the names that point at them."""
        found = {}
        for name in self.store.names("names"):
            try:
                found[name.removeprefix("names/").removesuffix(".json")] = str(json.loads(self.store.read(name))["label_set"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise FormatError(f"{self.store.url}/{name}: {error!r}; remove it and run decant label again") from error
        return found

    def point_name(self, name: str, *, label_set: str) -> None:
        """Let an experiment's name point at a label set."""
        self.store.write(f"names/{name}.json", canonical_json({"label_set": label_set}))

    def label_set_ids(self) -> Iterator[str]:
        """Yield the ids of committed label sets."""
        for name in self.store.names("label_sets"):
            if name.endswith("/manifest.json"):
                yield name.split("/")[1]
