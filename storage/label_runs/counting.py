"""How far a run is, from what lies in the cache.

A look lists the folders of the run's requests. Of a local store that is a walk over names; of an object store a folder is
listed in pieces that begin alike, several at a time, only those in which something is missing, and no longer than a look may
take: the next look goes on there. Memory: 20 bytes a part of the run, and the names of some pieces of a listing; what else lies
in a folder costs none.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from storage.errors import CacheError
from storage.filesystem import Store, filesystem_of
from storage.hashing import unseal
from storage.label_runs.folder import RunFolder
from storage.part_listing import Hashes, file_names, name_hashes, part_names, within
from storage.parts import PartRecord

_THREADS = 8
_DIGITS = "0123456789abcdef"
_MOST_DIGITS = 4
_PIECE_FILES = 4096
"""Files of an object store that are listed together; more are listed in smaller pieces."""
_RECORDS_A_LOOK = 256
_RECORDS_WAITING = 4096
_REPORTS_A_LOOK = 64
_ROWS_AT_A_TIME = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCounts:
    """How far a run is.

    Attributes:
        num_done_parts: that are committed, or whose dead letters were tried again.
        num_done_rows: rows of these, dead letters not taken off.
        num_failed_parts: that are not there because their unit failed.
        num_dead_letters: of the parts whose records were read.
        num_records: records that were read.
        whole: whether everything was looked at at least once; if not, more may be done.
    """

    num_parts: int
    num_rows: int
    num_done_parts: int
    num_done_rows: int
    num_failed_parts: int
    num_dead_letters: int
    num_records: int
    whole: bool

    @property
    def done(self) -> bool:
        """Whether nothing is missing."""
        return self.num_done_parts == self.num_parts

    @property
    def done_or_failed(self) -> bool:
        """Whether what is missing failed."""
        return self.num_done_parts + self.num_failed_parts == self.num_parts


@dataclass(kw_only=True)
class _RequestParts:
    """The parts of one request that a run is to make, in the order of their hashes.

    Attributes:
        hashes: uint64 [parts], of names, sorted.
        rows: int64 [parts], rows to compute.
        places: uint16 [parts], the first digits of names.
        retried: bool [parts], in which dead letters are tried again.
        done: bool [parts].
        replaced: tars whose dead letters are tried again, by part; and the tars of each that were listed last.
    """

    folder: str
    hashes: Hashes
    rows: npt.NDArray[np.int64]
    places: npt.NDArray[np.uint16]
    retried: npt.NDArray[np.bool_]
    done: npt.NDArray[np.bool_]
    replaced: dict[str, str]
    seen_tars: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pa.Table, *, folder: str) -> _RequestParts:
        hashes, places = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.uint16)]
        for start in range(0, table.num_rows, _ROWS_AT_A_TIME):
            names = table.column("part").slice(start, _ROWS_AT_A_TIME).combine_chunks()
            hashes.append(name_hashes(names))
            digits = pc.utf8_slice_codeunits(names, start=0, stop=_MOST_DIGITS).to_pylist()
            places.append(np.array([int(one, 16) for one in digits], dtype=np.uint16))
        # A part that two units, or two targets, share stands here once.
        order = np.unique(np.concatenate(hashes), return_index=True)[1]
        replaced = table.filter(pc.is_valid(table.column("replaces")))
        return cls(
            folder=folder,
            hashes=np.concatenate(hashes)[order],
            rows=table.column("num_rows").to_numpy()[order],
            places=np.concatenate(places)[order],
            retried=pc.is_valid(table.column("replaces")).to_numpy(zero_copy_only=False)[order],
            done=np.zeros(len(order), dtype=np.bool_),
            replaced=dict(zip(replaced.column("part").to_pylist(), replaced.column("replaces").to_pylist(), strict=True)),
        )

    def positions(self, names: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return where each name stands, and whether it is one of these parts' at all."""
        hashes = name_hashes(names)
        known = within(hashes, self.hashes)
        return np.searchsorted(self.hashes, hashes), known

    def mark(self, names: pa.Array) -> pa.Array:
        """Take in that some parts have a record, and return the names of those that had none before."""
        positions, known = self.positions(names)
        known[known] &= ~self.done[positions[known]] & ~self.retried[positions[known]]
        self.done[positions[known]] = True
        return names.filter(pa.array(known))

    def mark_one(self, name: str) -> None:
        """Take in that one part is done."""
        positions, known = self.positions(pa.array([name]))
        self.done[positions[known]] = True

    def num_undone(self, names: pa.Array) -> int:
        """Return how many of some parts are to be made and not done."""
        positions, known = self.positions(names)
        return int((~self.done[positions[known]]).sum())

    def beginnings(self, num_digits: int) -> list[str]:
        """Return what the names of parts that are not done begin with."""
        if num_digits == 0:
            return [] if self.done.all() else [""]
        places = np.unique(self.places[~self.done] >> np.uint16(4 * (_MOST_DIGITS - num_digits)))
        return [f"{place:0{num_digits}x}" for place in places.tolist()]


class RunCounter:
    """Counts what a run has done.

    Args:
        parts: the run's table of parts.
    """

    def __init__(self, run: RunFolder, *, parts: pa.Table) -> None:
        self._run = run
        self._store: Store = run.store
        requests = pc.unique(parts.column("request")).to_pylist()
        self._requests = {
            request: _RequestParts.of(
                parts.filter(pc.equal(parts.column("request"), request)) if len(requests) > 1 else parts,
                folder=f"requests/{request}",
            )
            for request in requests
        }
        self._in_pieces = not isinstance(filesystem_of(self._store.url)[0], LocalFileSystem | MemoryFileSystem)
        self._num_digits: dict[str, int] = {}
        self._pending: deque[tuple[str, str]] = deque()
        self._num_rounds = 0
        self._unread: deque[str] = deque(maxlen=_RECORDS_WAITING)
        self._num_records = self._num_dead_letters = 0
        self._failed: set[str] = set()
        self._reported: set[str] = set()
        self.fatal: str | None = None
        self.fatal_at: float | None = None

    def look(self, *, seconds: float = 2.0) -> RunCounts:
        """Look what has come since the last look.

        Args:
            seconds: after which the rest of a long listing is left to the next look.

        Raises:
            CacheError: the store failed.
        """
        deadline = time.monotonic() + seconds
        with ThreadPoolExecutor(_THREADS) as pool:
            self._list(pool, deadline=deadline)
            self._look_at_uncured()
            self._look_at_errors()
            self._read_records(pool)
        done = [int(parts.done.sum()) for parts in self._requests.values()]
        return RunCounts(
            num_parts=sum(len(parts.done) for parts in self._requests.values()),
            num_rows=sum(int(parts.rows.sum()) for parts in self._requests.values()),
            num_done_parts=sum(done),
            num_done_rows=sum(int(parts.rows[parts.done].sum()) for parts in self._requests.values()),
            num_failed_parts=self._num_failed(),
            num_dead_letters=self._num_dead_letters,
            num_records=self._num_records,
            whole=self._num_rounds > 0,
        )

    def look_at_all(self) -> RunCounts:
        """Look until everything was looked at once."""
        while not (counts := self.look()).whole:
            pass
        return counts

    def num_undone(self, request: str, names: Sequence[str]) -> int:
        """Return how many of some parts of a request the run is still to make."""
        parts = self._requests.get(request)
        return 0 if parts is None else parts.num_undone(pa.array(names, type=pa.string()))

    def is_missing(self, name: str) -> bool:
        """Return whether a part of this name is to be made, for any request, and not done."""
        return any(parts.num_undone(pa.array([name])) for parts in self._requests.values())

    def failures(self, *, most: int) -> list[str]:
        """Return what workers reported of units that are not there, and of what stopped them, the fatal one first."""
        messages = [] if self.fatal is None else [self.fatal]
        for name in sorted(self._failed):
            if len(messages) == most:
                break
            if self.is_missing(name):
                report = self._report(f"{self._run.path}/errors/{name}.json")
                if report is not None and report[1] not in messages:
                    messages.append(report[1])
        return messages

    def _list(self, pool: ThreadPoolExecutor, *, deadline: float) -> None:
        if not self._pending:
            for request, parts in self._requests.items():
                self._pending.extend((request, beginning) for beginning in parts.beginnings(self._digits(request)))
        while self._pending:
            pieces = [self._pending.popleft() for _ in range(min(_THREADS if self._in_pieces else 1, len(self._pending)))]
            try:
                for (request, beginning), names in zip(pieces, pool.map(self._names, pieces), strict=True):
                    num_names = 0
                    # Some listings come while they are gone through, and break off then.
                    for batch in names:
                        num_names += len(batch)
                        self._take_in(request, batch)
                    if self._in_pieces and num_names > _PIECE_FILES:
                        self._num_digits[request] = max(self._num_digits[request], min(len(beginning) + 1, _MOST_DIGITS))
            except CacheError:
                self._pending.extendleft(pieces)
                raise
            if self._pending and time.monotonic() > deadline:
                return
        self._num_rounds += 1

    def _digits(self, request: str) -> int:
        """Return how many digits the pieces of a listing begin with."""
        if request not in self._num_digits:
            num_files = 0
            if self._in_pieces:
                # Digests are spread evenly.
                num_files = sum(1 for _ in self._store.files(self._requests[request].folder, beginning="00")) * 256
            num_digits = 0
            while num_files > _PIECE_FILES * 16**num_digits and num_digits < _MOST_DIGITS:
                num_digits += 1
            self._num_digits[request] = num_digits
        return self._num_digits[request]

    def _names(self, piece: tuple[str, str]) -> Iterable[list[str]]:
        request, beginning = piece
        folder = self._requests[request].folder
        if not beginning:
            return file_names(self._store, folder)
        start = len(folder) + 1
        return [[file.name[start:] for file in self._store.files(folder, beginning=beginning)]]

    def _take_in(self, request: str, batch: list[str]) -> None:
        parts, names = self._requests[request], pa.array(batch, type=pa.string())
        records = names.filter(pc.ends_with(names, pattern=".json"))
        new = parts.mark(pc.utf8_slice_codeunits(records, start=0, stop=-len(".json")))
        self._unread.extend(f"{parts.folder}/{name}.json" for name in new.slice(max(0, len(new) - _RECORDS_WAITING)).to_pylist())
        if parts.replaced:
            self._take_in_tars(parts, names.filter(pc.ends_with(names, pattern=".tar")))

    def _take_in_tars(self, parts: _RequestParts, tars: pa.Array) -> None:
        """Read the records of parts in which dead letters are tried again, where their tars are others than before."""
        of_parts = part_names(tars)
        tars = tars.filter(pc.is_in(of_parts, value_set=pa.array(list(parts.replaced), type=pa.string())))
        found: dict[str, set[str]] = {}
        for tar in tars.to_pylist():
            found.setdefault(tar.rsplit(".", 2)[0], set()).add(tar)
        for name, names in found.items():
            together = frozenset(names) | parts.seen_tars.get(name, frozenset())
            if together == parts.seen_tars.get(name):
                continue
            record_name = f"{parts.folder}/{name}.json"
            try:
                record = PartRecord.from_bytes(self._store.read(record_name), origin=record_name)
            except FileNotFoundError:
                continue
            # A tar comes before its record: one that nobody names yet is looked at again.
            if record.tar_name != parts.replaced[name]:
                parts.seen_tars[name] = together
                parts.mark_one(name)
                self._unread.append(record_name)
            elif together <= {record.tar_name, *(earlier.tar_name for earlier in record.earlier)}:
                parts.seen_tars[name] = together

    def _look_at_uncured(self) -> None:
        if not any(parts.replaced for parts in self._requests.values()):
            return
        for name in self._store.names(f"{self._run.path}/uncured"):
            request, _, part = name.rsplit("/", 1)[-1].removesuffix(".json").partition(".")
            if request in self._requests:
                self._requests[request].mark_one(part)

    def _look_at_errors(self) -> None:
        names = [name for name in self._store.names(f"{self._run.path}/errors") if name not in self._reported]
        # What stopped a worker, and with it the run, is read however many units failed.
        names.sort(key=lambda name: "/setup-" not in name)
        for number, name in enumerate(names):
            # Of many failed units the first ones are read: all stop for the same reason, or none.
            report = self._report(name) if number < _REPORTS_A_LOOK else None
            self._reported.add(name)
            stem = name.rsplit("/", 1)[-1].removesuffix(".json")
            if not stem.startswith("setup-"):
                self._failed.add(stem)
            if report is not None and report[0]:
                self.fatal, self.fatal_at = report[1], self._store.look(name).modified

    def _report(self, name: str) -> tuple[bool, str] | None:
        try:
            report = json.loads(self._store.read(name))
            return bool(report["fatal"]), str(report["message"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _num_failed(self) -> int:
        if not self._failed:
            return 0
        names = pa.array(sorted(self._failed), type=pa.string())
        return sum(parts.num_undone(names) for parts in self._requests.values())

    def _read_records(self, pool: ThreadPoolExecutor) -> None:
        names = [self._unread.pop() for _ in range(min(_RECORDS_A_LOOK, len(self._unread)))]
        for letters in pool.map(self._num_letters, names):
            if letters is not None:
                self._num_records += 1
                self._num_dead_letters += letters

    def _num_letters(self, name: str) -> int | None:
        """Return the dead letters of a part; None if its record is damaged, which whoever commits the label set will say."""
        try:
            body = unseal(self._store.read(name))
            return None if body is None else len(json.loads(body)["dead_letters"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
