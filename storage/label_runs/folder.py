"""The folder of a run: what it is to do, written before it starts, so that anybody can follow it from anywhere.

runs/<run>/run.json        who started it, where, on what; the last file to be written before the pipeline starts
runs/<run>/parts.parquet   the parts it is to make
runs/<run>/tasks/          the same as workers take them
runs/<run>/alive/          one file a worker, written again and again while it has work in hand
runs/<run>/errors/         units that failed, one file each, and errors that stopped a worker
runs/<run>/uncured/        parts whose dead letters were tried again in vain, one empty file each
runs/<run>/dead/           parts with rows that have no label, one empty file each, which ends in their number
runs/<run>/times/          how long units took, and how many rows were passed over

Nothing here says that a run has ended: that follows from the parts that are there.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import CacheError, FormatError
from storage.filesystem import Store
from storage.hashing import canonical_json, digest, seal, unseal
from storage.naming import did_you_mean
from storage.parquet_bounds import check_size

RUN_NAME = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
_PARTS = pa.schema(
    [
        ("request", pa.dictionary(pa.int32(), pa.string())),
        ("part", pa.string()),
        ("num_rows", pa.int64()),
        ("replaces", pa.string()),
    ]
)
_ROWS_AT_A_TIME = 65_536


class RunTarget(BaseModel):
    """A label set that a run is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    request: str = Field(pattern="^[0-9a-f]{64}$")
    label_set: str = Field(pattern="^[0-9a-f]{32}$")
    """Id that it will have."""


class RunInfo(BaseModel):
    """What a run is to do, as it was when it started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    run: str
    name: str
    """Of the experiment."""
    targets: tuple[RunTarget, ...]
    runner: str
    local: bool
    """Its workers are of the machine and the command that started it, and end with that."""
    detached: bool
    """The command that started it did not wait for it."""
    workers: int
    host: str
    started: str
    """By the clock of that host, UTC."""
    decant: str
    jobs: tuple[str, ...]
    """What the engine's pages call its jobs, where there are such pages."""
    command: str | None
    """What goes on with it, and commits the label sets in the end; without options for Beam, which may hold secrets."""
    of_text: bool
    num_units: int
    """Work units."""
    num_parts: int
    num_rows: int
    """Documents instead, where `of_text`: how many rows they become shows when they are labelled."""
    parts_sha256: str = ""

    @property
    def unit(self) -> str:
        """What is counted."""
        return "document" if self.of_text else "row"


def new_run_name() -> str:
    """Return a name that sorts by time, in which two runs never meet."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"


class PartsTable:
    """Collects the table of the parts that a run is to make, some thousands at a time."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._columns: tuple[list[Any], ...] = tuple([] for _ in _PARTS)

    def add(self, *, request: str, part: str, num_rows: int, replaces: str | None) -> None:
        """Add a part.

        Args:
            request: fingerprint of its request.
            num_rows: rows to compute of it.
            replaces: name of the tar whose dead letters are tried again; None: the part is computed as a whole.
        """
        for column, value in zip(self._columns, (request, part, num_rows, replaces), strict=True):
            column.append(value)
        if len(self._columns[0]) == _ROWS_AT_A_TIME:
            self._flush()

    def _flush(self) -> None:
        arrays = [pa.array(column, type=field.type) for column, field in zip(self._columns, _PARTS, strict=True)]
        self._batches.append(pa.record_batch(arrays, schema=_PARTS))
        for column in self._columns:
            column.clear()

    def finish(self) -> pa.Table:
        """Return the table."""
        self._flush()
        return pa.Table.from_batches(self._batches, schema=_PARTS).unify_dictionaries()


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder of one run. Picklable."""

    store: Store
    name: str

    @property
    def path(self) -> str:
        """Where it lies in the cache."""
        return f"runs/{self.name}"

    def write(self, info: RunInfo, *, parts: pa.Table) -> RunInfo:
        """Write down what the run is to do, and return it; from then on others see it."""
        sink = pa.BufferOutputStream()
        pq.write_table(parts, sink, compression="zstd", row_group_size=_ROWS_AT_A_TIME)
        data = sink.getvalue().to_pybytes()
        self.store.write(f"{self.path}/parts.parquet", data)
        whole = info.model_copy(update={"parts_sha256": digest(data)})
        self.store.write(f"{self.path}/run.json", seal(canonical_json(whole.model_dump(mode="json"))))
        return whole

    def info(self) -> RunInfo:
        """Return what the run is to do.

        Raises:
            FileNotFoundError: it never came to start, or is being removed.
            FormatError: damage, or of a release this one cannot read.
        """
        origin = f"{self.store.url}/{self.path}/run.json"
        body = unseal(self.store.read(f"{self.path}/run.json"))
        if body is None:
            raise FormatError(f"{origin} is damaged (its sha256 differs); nothing but the view of this run is lost")
        try:
            return RunInfo.model_validate_json(body)
        except ValidationError as error:
            raise FormatError(f"{origin}: not a run that this release can read: {error}") from error

    def parts(self, info: RunInfo) -> pa.Table:
        """Return the table of the parts the run is to make.

        Raises:
            FileNotFoundError: the run is being removed.
            FormatError: it is damaged.
        """
        data = self.store.read(f"{self.path}/parts.parquet")
        if digest(data) != info.parts_sha256:
            raise FormatError(
                f"{self.store.url}/{self.path}/parts.parquet is damaged (its sha256 differs); nothing but the view of this run "
                "is lost"
            )
        try:
            with pq.ParquetFile(pa.BufferReader(data), read_dictionary=["request"], pre_buffer=False) as parquet:
                check_size(parquet, data, num_rows=info.num_parts)
                table = parquet.read(use_threads=False)
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise self._no_table(str(error)) from error
        if not table.schema.equals(_PARTS) or table.num_rows != info.num_parts:
            raise self._no_table("it has other columns, or another number of rows")
        if any(table.column(name).null_count for name in ("request", "part", "num_rows")):
            raise self._no_table("something is missing in it")
        if (pc.min(table.column("num_rows")).as_py() or 0) < 0:
            raise self._no_table("rows are negative")
        for name, pattern in (("request", "^[0-9a-f]{64}$"), ("part", r"^[0-9a-f]{32}\.v[0-9]{5,9}-[0-9]{5,9}$")):
            if not pc.all(pc.match_substring_regex(table.column(name).cast(pa.string()), pattern)).as_py() and table.num_rows:
                raise self._no_table(f"{name} is not always one")
        return table

    def _no_table(self, problem: str) -> FormatError:
        return FormatError(f"{self.store.url}/{self.path}/parts.parquet: not a table that this release can read: {problem}")

    def report(self, name: str, error: BaseException, *, fatal: bool, trace: str = "") -> None:
        """Write an error down, for whoever follows the run.

        Args:
            name: of the part that could not be made, or, of another error, one that begins with `setup-`.
            fatal: whether it would hit every unit.
        """
        report = {"unit": name, "fatal": fatal, "kind": type(error).__name__, "message": str(error), "traceback": trace}
        self.store.write(f"{self.path}/errors/{name}.json", json.dumps(report).encode())

    def started(self) -> float:
        """Return when the run started, a POSIX time by the store's clock."""
        return self.store.look(f"{self.path}/run.json").modified

    def last_heard(self) -> dict[str, float]:
        """Return when each worker was last heard of, by its name: POSIX times by the store's clock."""
        start = len(f"{self.path}/alive/")
        return {
            file.name[start:].removesuffix(".json"): file.modified
            for file in self.store.files(f"{self.path}/alive")
            if file.name.endswith(".json")
        }


def run_names(store: Store) -> list[str]:
    """Return the names of the runs of a cache, the newest first, also of those that never came to start."""
    return sorted((name for name in store.folders("runs") if RUN_NAME.fullmatch(name)), reverse=True)


def known_runs(store: Store) -> Iterator[tuple[RunFolder, RunInfo]]:
    """Yield the runs of a cache that others can follow, the newest first."""
    for name in run_names(store):
        folder = RunFolder(store=store, name=name)
        try:
            yield folder, folder.info()
        except (FileNotFoundError, FormatError):
            continue


def find_run(store: Store, *, wanted: str | None) -> tuple[RunFolder, RunInfo]:
    """Return a run.

    Args:
        wanted: the name of a run, its beginning, or the name of an experiment, whose newest run is taken; None: the newest.

    Raises:
        CacheError: there is none, or the beginning is that of several.
    """
    if wanted is not None and RUN_NAME.fullmatch(wanted):
        folder = RunFolder(store=store, name=wanted)
        try:
            return folder, folder.info()
        except FileNotFoundError:
            raise CacheError(
                f"{store.url} has no run {wanted} that can be followed.{did_you_mean(wanted, run_names(store)[:20])} Runs that "
                "have ended are removed by decant cache gc; those that were stopped before they started say nothing"
            ) from None
    known = known_runs(store)
    if wanted is None:
        for found in known:
            return found
        raise CacheError(f"{store.url} has no run that can be followed; decant label starts one")
    names = []
    for folder, info in known:
        names.append(folder.name)
        if info.name == wanted:
            return folder, info
    beginning = [name for name in names if name.startswith(wanted)]
    if len(beginning) == 1:
        folder = RunFolder(store=store, name=beginning[0])
        return folder, folder.info()
    if beginning:
        raise CacheError(f"{wanted!r} is how {len(beginning)} runs begin: {', '.join(beginning[:5])}; give more of the name")
    raise CacheError(
        f"{store.url} has no run {wanted!r}, and no experiment of that name has one; decant cache watch {store.url} --list lists "
        "those that there are"
    )
