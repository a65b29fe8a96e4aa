"""Which files of a cache nobody refers to. Looks only; a listing is a hint, and whoever removes must look again."""

from __future__ import annotations

import contextlib
import re
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from storage.cache import Cache
from storage.errors import CorruptError, FormatError
from storage.filesystem import PARTIAL, StoredFile
from storage.label_runs.folder import RUN_NAME, RunFolder
from storage.label_set import Manifest, read_manifest
from storage.parts import PartRecord
from storage.specs import HiddenStatesSpec
from storage.upkeep.leases import old_leavings
from storage.upkeep.references import Hashes, References, hashes_of, stem_of, within

PARTIAL_SECONDS = 3600.0
"""Younger files that are half written stay, whatever the grace: somebody may be writing them."""
_LAST_OF_RUN = {"/parts.parquet": 1, "/run.json": 2}
"""By these a run that is half removed is known to have ended."""
_FOLDER_FILES = 200_000
"""Files of one folder that are looked at together."""
_DIGITS = "0123456789abcdef"
_PART = r"[0-9a-f]{32}\.v[0-9]{5,}-[0-9]{5,}"
_TAR = re.compile(rf"{_PART}\.[0-9a-f]{{16}}\.tar")
_RECORD = re.compile(rf"({_PART})\.json")
_REQUEST = re.compile(r"[0-9a-f]{64}")
_EXAMINATION = re.compile(r"doctor-[0-9a-f]{12}")
"""What `decant doctor` leaves where it is killed, or where a worker speaks after it has ended."""
_HEAD = re.compile(r"heads/([0-9a-f]{64})\.head")
_TABLE = re.compile(r"(?:parts-[0-9a-f]{16}\.parquet|class_means-[0-9a-f]{16}\.block)")

PARTIAL_FILES, STRAY_TARS, UNUSED_PARTS, EMPTY_REQUESTS = (
    "partial files",
    "tars without a record",
    "parts no label set names",
    "requests without parts",
)
OLD_RUNS, OLD_TABLES, LABEL_SETS, MEMOS = "finished runs", "superseded tables", "label sets without a name", "memos"
HEADS = "heads no label set names"
KINDS = (PARTIAL_FILES, STRAY_TARS, UNUSED_PARTS, EMPTY_REQUESTS, OLD_RUNS, OLD_TABLES, LABEL_SETS, MEMOS, HEADS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Files that go together or stay together, in the order in which they go.

    Attributes:
        kind: one of KINDS.
        request: fingerprint of the request they belong to, if any.
    """

    kind: str
    files: tuple[StoredFile, ...]
    request: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.num_bytes for file in self.files)


@dataclass(kw_only=True)
class Sweep:
    """One walk over a cache.

    Attributes:
        now: store's time at the start.
        before: store's time; garbage with a file that is not older is young and stays.
        old_before: the same for memos, and for runs that did not finish.
        young: what stays only because it is young.
        held_runs: names of runs that have a hold.
        num_unfinished_runs: runs that left parts undone, and are not old.
        num_held_runs: runs that stay since they have a hold.
    """

    cache: Cache
    references: References
    now: float
    before: float
    old_before: float
    young: list[int] = field(default_factory=lambda: [0, 0])
    held_runs: Collection[str] = frozenset()
    num_unfinished_runs: int = 0
    num_held_runs: int = 0
    _records: array[int] = field(default_factory=lambda: array("Q"))
    _heads: dict[str, str | None] = field(default_factory=dict)

    def before_of(self, garbage: Garbage) -> float:
        """Return the time before which all files of garbage must lie, so that it may go."""
        return self.before if garbage.kind != PARTIAL_FILES else min(self.before, self.now - PARTIAL_SECONDS)

    def _if_ripe(self, garbage: Garbage) -> Iterator[Garbage]:
        if all(file.modified < self.before_of(garbage) for file in garbage.files):
            yield garbage
        else:
            self.young[0] += len(garbage.files)
            self.young[1] += garbage.num_bytes

    def find_requests(self) -> Iterator[Garbage]:
        """Yield the parts that nobody names, tars that are no part's, and requests that have none."""
        for request in self.cache.store.folders("requests"):
            if _REQUEST.fullmatch(request):
                yield from self._find_request(request)

    def _find_request(self, request: str) -> Iterator[Garbage]:
        folder = self.cache.request_folder(request)
        is_used = request in self.references.requests
        num_young = self.young[0]
        for shard in self._shards(folder):
            records: dict[str, StoredFile] = {}
            tars: dict[str, list[StoredFile]] = {}
            for file in self.cache.store.files(folder, beginning=shard):
                name = file.name.removeprefix(f"{folder}/")
                match = _RECORD.fullmatch(name)
                if match is not None:
                    records[match[1]] = file
                elif _TAR.fullmatch(name):
                    tars.setdefault(stem_of(name), []).append(file)
                elif name.endswith(PARTIAL):
                    yield from self._if_ripe(Garbage(kind=PARTIAL_FILES, files=(file,)))
            self._records.extend(hashes_of(f"{request}/{stem}" for stem in records).tolist())
            stems = sorted({*records, *tars})
            unnamed = self._unnamed(request, [tar for of_stem in tars.values() for tar in of_stem])
            for stem, used in zip(stems, self.references.hold_parts(request, stems), strict=True):
                record, of_stem = records.get(stem), tars.get(stem, [])
                is_used = is_used or bool(used)
                if used:
                    losers = [tar for tar in of_stem if tar.name in unnamed]
                    yield from self._find_losers(request, record=record, unnamed=losers)
                elif record is not None:
                    # The record first: a kill in between leaves a tar without a record, which counts for nothing.
                    yield from self._if_ripe(Garbage(kind=UNUSED_PARTS, files=(record, *of_stem), request=request))
                else:
                    yield from self._strays(request, of_stem)
        if not is_used and self.young[0] == num_young:
            with contextlib.suppress(FileNotFoundError):
                spec = self.cache.store.look(f"{folder}/spec.json")
                yield from self._if_ripe(Garbage(kind=EMPTY_REQUESTS, files=(spec,), request=request))

    def _shards(self, folder: str) -> tuple[str, ...]:
        """Return beginnings of names that list a folder in pieces that fit into memory; digests are spread evenly."""
        num_files = sum(1 for _ in self.cache.store.files(folder, beginning="0"))
        if num_files * len(_DIGITS) <= _FOLDER_FILES:
            return ("",)
        if num_files <= _FOLDER_FILES:
            return (*_DIGITS, ".")
        return (*(one + two for one in _DIGITS for two in _DIGITS), ".")

    def _strays(self, request: str, tars: list[StoredFile]) -> Iterator[Garbage]:
        for tar in tars:
            yield from self._if_ripe(Garbage(kind=STRAY_TARS, files=(tar,), request=request))

    def _unnamed(self, request: str, tars: list[StoredFile]) -> set[str]:
        """Return the names of the tars that no label set names."""
        named = self.references.hold_tars(request, [tar.name.rsplit("/", 1)[-1] for tar in tars])
        return {tars[index].name for index in np.flatnonzero(~named)}

    def _find_losers(self, request: str, *, record: StoredFile | None, unnamed: list[StoredFile]) -> Iterator[Garbage]:
        """Yield tars of a part in use that neither a label set nor the part's record names."""
        if not unnamed:
            return
        named_by_record = None
        if record is not None:
            try:
                data = self.cache.store.read(record.name)
                named_by_record = PartRecord.from_bytes(data, origin=f"{self.cache.store.url}/{record.name}").tar_name
            except (FileNotFoundError, FormatError):
                # `verify` is there to report a damaged record; until it is mended its tars stay.
                return
        yield from self._strays(request, [tar for tar in unnamed if not tar.name.endswith(f"/{named_by_record}")])

    def find_tables(self, *, leaving: Collection[str]) -> Iterator[Garbage]:
        """Yield files of label sets that their manifests no longer name, but for label sets that are leaving as a whole."""
        manifests: dict[str, Manifest | None] = {}
        for file in self.cache.store.files("label_sets"):
            label_set, _, name = file.name.removeprefix("label_sets/").partition("/")
            if name.endswith(PARTIAL):
                yield from self._if_ripe(Garbage(kind=PARTIAL_FILES, files=(file,)))
            elif _TABLE.fullmatch(name) and label_set not in leaving:
                if label_set not in manifests:
                    manifests[label_set] = self._manifest(label_set)
                manifest = manifests[label_set]
                if manifest is not None and name not in {manifest.parts_file, manifest.class_means_file}:
                    garbage = Garbage(kind=OLD_TABLES, files=(file,), request=manifest.request.fingerprint())
                    yield from self._if_ripe(garbage)

    def _manifest(self, label_set: str) -> Manifest | None:
        there = self.cache.store.exists(f"label_sets/{label_set}/manifest.json")
        return read_manifest(self.cache, label_set=label_set) if there else None

    def find_heads(self, *, held: Collection[str]) -> Iterator[Garbage]:
        """Yield the teachers' heads that no request in use names.

        Args:
            held: requests that jobs hold.
        """
        for file in self.cache.store.files("heads"):
            if file.name.endswith(PARTIAL):
                yield from self._if_ripe(Garbage(kind=PARTIAL_FILES, files=(file,)))
            elif not self.needs_head(file.name, held=held):
                yield from self._if_ripe(Garbage(kind=HEADS, files=(file,)))

    def needs_head(self, name: str, *, held: Collection[str]) -> bool:
        """Return whether a file is no head, or one that a request in use names, or may name: not every one can be read."""
        match = _HEAD.fullmatch(name)
        if match is None:
            return True
        for request in {*self.references.requests, *held}:
            if request not in self._heads:
                try:
                    target = self.cache.request(request).target
                except CorruptError:
                    # Of a job that has not written it yet, or damaged: `verify` reports that.
                    return True
                self._heads[request] = target.head_sha256 if isinstance(target, HiddenStatesSpec) else None
            if self._heads[request] == match[1]:
                return True
        return False

    def find_runs(self) -> Iterator[Garbage]:
        """Yield the folders of runs that have ended, and what killed jobs left there. To be called after `find_requests`."""
        store = self.cache.store
        records = np.unique(np.array(self._records, dtype=np.uint64))
        for name in store.folders("runs"):
            if not RUN_NAME.fullmatch(name):
                continue
            if name in self.held_runs:
                self.num_held_runs += 1
                continue
            run = RunFolder(store=store, name=name)
            files = tuple(sorted(store.files(run.path), key=lambda file: _LAST_OF_RUN.get(file.name.removeprefix(run.path), 0)))
            ended = all(file.modified < self.old_before for file in files) or self._finished(run, files, records)
            if files and ended:
                yield from self._if_ripe(Garbage(kind=OLD_RUNS, files=files))
            self.num_unfinished_runs += not ended

    def _finished(self, run: RunFolder, files: tuple[StoredFile, ...], records: Hashes) -> bool:
        """Return whether every part a run was to make is there, or failed."""
        try:
            info = run.info()
        except (FileNotFoundError, FormatError):
            return False
        try:
            table = run.parts(info)
        except FileNotFoundError:
            # It is written first and removed last but one: this run was about to go.
            return True
        except FormatError:
            return False
        start = len(f"{run.path}/errors/")
        failed = {file.name[start:].removesuffix(".json") for file in files if file.name.startswith(f"{run.path}/errors/")}
        for batch in table.to_batches():
            requests, parts = (batch.column(name).to_pylist() for name in ("request", "part"))
            names = (f"{request}/{part}" for request, part in zip(requests, parts, strict=True) if part not in failed)
            if not within(hashes_of(names), records).all():
                return False
        return True

    def find_leavings(self) -> Iterator[Garbage]:
        """Yield what killed writers left half written, and the holds and marks of killed jobs."""
        store = self.cache.store
        for file in store.files("", beginning=".probe-"):
            yield from self._if_ripe(Garbage(kind=PARTIAL_FILES, files=(file,)))
        for folder in ("names", "sources", "teachers", "runs/holds", "runs/removing"):
            for file in store.files(folder):
                if file.name.endswith(PARTIAL) or file.name.startswith("sources/.decant-memo-"):
                    yield from self._if_ripe(Garbage(kind=PARTIAL_FILES, files=(file,)))
        for run in store.folders("runs"):
            if _EXAMINATION.fullmatch(run):
                for file in store.files(f"runs/{run}"):
                    yield from self._if_ripe(Garbage(kind=PARTIAL_FILES, files=(file,)))
        for name in old_leavings(store, now=self.now):
            with contextlib.suppress(FileNotFoundError):
                yield from self._if_ripe(Garbage(kind=PARTIAL_FILES, files=(store.look(name),)))

    def find_memos(self) -> Iterator[Garbage]:
        """Yield the memos of sources and teachers that were not written for long."""
        for folder, suffix in (("sources", ".parquet"), ("teachers", ".json")):
            for file in self.cache.store.files(folder):
                if file.name.count("/") == 1 and file.name.endswith(suffix) and file.modified < self.old_before:
                    yield Garbage(kind=MEMOS, files=(file,))
