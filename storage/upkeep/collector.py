"""Find and remove what nobody refers to in a cache, also beside running jobs.

A part is kept while any label set names it, a job holds its request, or it is young. Everything is looked at again right before
it goes: files one by one, label sets and holds with every few hundred files.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from storage.cache import Cache, NamedLabelSet
from storage.errors import CorruptError, MismatchError
from storage.filesystem import PARTIAL, StoredFile
from storage.label_set import read_manifest
from storage.upkeep.leases import REMOVING_SECONDS, held_requests, held_runs, removing
from storage.upkeep.references import References, references_of, stem_of
from storage.upkeep.sweep import (
    EMPTY_REQUESTS,
    HEADS,
    LABEL_SETS,
    OLD_RUNS,
    OLD_TABLES,
    STRAY_TARS,
    UNUSED_PARTS,
    Garbage,
    Sweep,
)

_THREADS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSetFiles:
    """The files in a label set's folder by name; what is half written is left out. Without a manifest it was never committed."""

    label_set: str
    files: tuple[StoredFile, ...]

    @property
    def manifest(self) -> StoredFile | None:
        """The manifest, if there is one."""
        return next((file for file in self.files if file.name.endswith("/manifest.json")), None)


def _label_sets(cache: Cache) -> dict[str, LabelSetFiles]:
    found: dict[str, list[StoredFile]] = {}
    for file in cache.store.files("label_sets"):
        label_set, _, name = file.name.removeprefix("label_sets/").partition("/")
        if name and not name.endswith(PARTIAL):
            found.setdefault(label_set, []).append(file)
    return {
        label_set: LabelSetFiles(label_set=label_set, files=tuple(sorted(files, key=lambda file: file.name)))
        for label_set, files in sorted(found.items())
    }


@dataclass(kw_only=True)
class Collector:
    """One run of gc over a cache; finds when it is made what label sets refer to.

    Attributes:
        now: the store's time at the start; nothing written later is removed, whatever the grace.
        held: requests that jobs hold, with the file that says so.
        problems: names whose files are damaged.
        unnamed: old label sets that no name and no tag points at.
        leaving: those of them that go.
        references: what all others name.

    Raises:
        CacheError: a label set cannot be read, so that nobody knows what it refers to.
    """

    cache: Cache
    grace_seconds: float
    old_seconds: float
    with_label_sets: bool
    with_memos: bool
    now: float = field(init=False)
    held: dict[str, str] = field(init=False)
    problems: list[str] = field(init=False)
    unnamed: list[LabelSetFiles] = field(init=False)
    leaving: dict[str, LabelSetFiles] = field(init=False)
    references: References = field(init=False)
    sweep: Sweep = field(init=False)
    num_held: int = 0

    def __post_init__(self) -> None:
        store = self.cache.store
        self.now = store.now()
        self.held = held_requests(store, now=self.now)
        self._known = _label_sets(self.cache)
        named = self._read_names()
        before = self.now - max(self.grace_seconds, self.old_seconds)
        self.unnamed = [
            found
            for label_set, found in self._known.items()
            if label_set not in named and all(file.modified < before for file in found.files)
        ]
        self.leaving = {}

        def staying() -> Iterator[References]:
            candidates = {found.label_set for found in self.unnamed} if self.with_label_sets else set()
            for label_set, found in self._known.items():
                references = self._references_of(found)
                if label_set not in candidates or references.requests & self.held.keys():
                    yield references
                else:
                    self.leaving[label_set] = found

        self.references = References.merged(staying())
        self.sweep = Sweep(
            cache=self.cache,
            references=self.references,
            now=self.now,
            before=self.now - self.grace_seconds,
            old_before=before,
            held_runs=held_runs(store, now=self.now),
        )

    def _read_names(self) -> dict[str, str]:
        names, self.problems = self.cache.read_names()
        if self.with_label_sets and self.problems:
            raise CorruptError(
                f"nothing was removed: {self.problems[0]}\nIt may be the name of a label set that would go for lack of one"
            )
        for name, named in names.items():
            found = self._known.get(named.label_set)
            if (found is not None and found.manifest is not None) or self._came_meanwhile(name, named):
                continue
            raise CorruptError(
                f"nothing was removed: {self.cache.store.url}/names/{name}.json points at label set {named.label_set}, whose "
                "manifest is missing, so that nobody knows which parts it names. Run decant label for it again, which writes "
                "the manifest anew, or remove the name if nobody needs it, and run gc again"
            )
        return {named.label_set: name for name, named in names.items()}

    def _came_meanwhile(self, name: str, named: NamedLabelSet) -> bool:
        """Return whether a label set that was not listed is there all the same, and counts from now on, or the name has moved on.

        It was committed since, or its folder is a link to another disk, which no listing follows.
        """
        try:
            manifest = self.cache.store.look(f"label_sets/{named.label_set}/manifest.json")
        except FileNotFoundError:
            return self.cache.find_name(name) != named
        self._known[named.label_set] = LabelSetFiles(label_set=named.label_set, files=(manifest,))
        return True

    def _references_of(self, found: LabelSetFiles) -> References:
        try:
            return references_of(self.cache, label_set=found.label_set, files=found.files)
        except (CorruptError, MismatchError) as error:
            folder = f"{self.cache.store.url}/label_sets/{found.label_set}"
            raise type(error)(
                f"nothing was removed, or nothing more: {error}\nIt may name parts that are still needed. Run decant label for "
                f"it again, which mends it, or, if nobody needs it, remove {folder}/ and run gc again"
            ) from error

    def find(self) -> Iterator[Garbage]:
        """Yield everything that may go, label sets first."""
        for found in self.leaving.values():
            # The manifest first: what is left without it is read by nobody.
            ordered = sorted(found.files, key=lambda file: file != found.manifest)
            yield Garbage(kind=LABEL_SETS, files=tuple(ordered))
        sweep = self.sweep
        others = itertools.chain(
            sweep.find_requests(),
            sweep.find_tables(leaving=self.leaving),
            sweep.find_heads(held=self.held),
            sweep.find_runs(),
            sweep.find_leavings(),
            sweep.find_memos() if self.with_memos else (),
        )
        for garbage in others:
            if garbage.request in self.held:
                self.num_held += len(garbage.files)
            else:
                yield garbage

    def remove(self, chunk: Sequence[Garbage]) -> list[Garbage]:
        """Remove what is still garbage and return it.

        Raises:
            CacheError: a label set that came meanwhile cannot be read, or the store failed; some may be removed by then.
        """
        with removing(self.cache.store):
            started = time.monotonic()
            self.held = held_requests(self.cache.store, now=self.now)
            self.sweep.held_runs = held_runs(self.cache.store, now=self.now)
            self._look_at_label_sets()

            def remove(garbage: Garbage) -> Garbage | None:
                # A process that slept may find that everybody takes it for dead.
                in_time = time.monotonic() - started < REMOVING_SECONDS / 2
                if not in_time or not self._still_garbage(garbage):
                    return None
                for file in garbage.files:
                    self.cache.store.remove(file.name)
                return garbage

            gone: list[Garbage | None] = []
            for garbage in chunk:
                if garbage.kind == LABEL_SETS:
                    gone.append(remove(garbage))
                    if gone[-1] is None:
                        self._keep(garbage.files[0].name.split("/")[1])
            with ThreadPoolExecutor(_THREADS) as pool:
                gone += pool.map(remove, [garbage for garbage in chunk if garbage.kind not in {LABEL_SETS, EMPTY_REQUESTS}])
            # A request is without parts once its parts are gone.
            gone += [remove(garbage) for garbage in chunk if garbage.kind == EMPTY_REQUESTS]
        removed = [garbage for garbage in gone if garbage is not None]
        for garbage in removed:
            if garbage.kind == OLD_RUNS:
                self.cache.store.remove_empty_folders("/".join(garbage.files[0].name.split("/")[:2]))
        return removed

    def _look_at_label_sets(self) -> None:
        """Take in what was committed or named since, and what has changed."""
        known, self._known = self._known, _label_sets(self.cache)
        named = {named.label_set for named in self.cache.read_names()[0].values()}
        for label_set, found in self._known.items():
            if known.get(label_set) != found or (label_set in self.leaving and label_set in named):
                self._keep(label_set)

    def _keep(self, label_set: str) -> None:
        self.leaving.pop(label_set, None)
        found = self._known.get(label_set)
        if found is not None:
            self.references = References.merged([self.references, self._references_of(found)])
            self.sweep.references = self.references

    def _still_garbage(self, garbage: Garbage) -> bool:
        store = self.cache.store
        if garbage.request in self.held:
            return False
        for file in garbage.files:
            try:
                if store.look(file.name).modified >= self.sweep.before_of(garbage):
                    return False
            except FileNotFoundError:
                continue
        first = garbage.files[0].name
        folder, _, name = first.rpartition("/")
        match garbage.kind:
            case kind if kind == UNUSED_PARTS:
                assert garbage.request is not None
                return not self.references.hold_parts(garbage.request, [name.removesuffix(".json")])[0]
            case kind if kind == STRAY_TARS:
                assert garbage.request is not None
                named = bool(self.references.hold_tars(garbage.request, [name])[0])
                used = bool(self.references.hold_parts(garbage.request, [stem_of(name)])[0])
                return not named and (used or not store.exists(f"{folder}/{stem_of(name)}.json"))
            case kind if kind == EMPTY_REQUESTS:
                others = (file for file in store.files(folder) if file.name != first)
                return garbage.request not in self.references.requests and next(others, None) is None
            case kind if kind == OLD_RUNS:
                return first.split("/")[1] not in self.sweep.held_runs
            case kind if kind == HEADS:
                return not self.sweep.needs_head(first, held=self.held)
            case kind if kind == OLD_TABLES:
                manifest = read_manifest(self.cache, label_set=folder.removeprefix("label_sets/"))
                return name not in {manifest.parts_file, manifest.class_means_file}
            case kind if kind == LABEL_SETS:
                label_set = folder.removeprefix("label_sets/")
                found = self._known.get(label_set)
                held = found is not None and bool(self._references_of(found).requests & self.held.keys())
                return label_set in self.leaving and not held
            case _:
                return True
