"""What runs leave in a cache for others, broken: run.json, the table of its parts, reports of errors, holds."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from storage.cache import Cache
from storage.hashing import canonical_json, digest, seal, unseal
from storage.label_runs.counting import RunCounter
from storage.label_runs.folder import RunFolder, RunInfo, find_run
from storage.label_runs.following import RunFollower
from storage.upkeep.leases import held_requests, held_runs, hold_requests
from tests.reliability.fuzz_cache_files import bytes_of, forms_of, mutated_form, parquet_of, row_of_a_table
from tests.reliability.fuzz_target import Reading, Target
from tests.reliability.mutation import mutated, replaced
from tests.storage.caches import Labeller
from tests.storage.label_runs.made import start_run

_DEEP = b"[" * 20_000 + b"]" * 20_000
"""JSON that a parser which calls itself cannot end."""


def run_targets(labeller: Labeller) -> Iterator[Target]:
    """Yield the targets of a run's files; what they break lies in memory."""
    made = start_run(labeller)
    memory = Cache.at("memory://fuzz-runs")
    run = RunFolder(store=memory.store, name=made.folder.name)
    names = {name: f"{run.path}/{name}" for name in ("run.json", "parts.parquet")}
    files = {name: made.folder.store.read(path) for name, path in names.items()}
    for name, data in files.items():
        memory.store.write(names[name], data)
    yield from _infos(run, file=names["run.json"], data=files["run.json"])
    yield from _parts(run, info=made.info, file=names["parts.parquet"], data=files["parts.parquet"])
    yield _reports(run, info=made.info, part=made.parts[0].name)
    yield from _holds(labeller)


def _infos(run: RunFolder, *, file: str, data: bytes) -> Iterator[Target]:
    def found(made: bytes) -> Reading:
        def read() -> object:
            run.store.write(file, made)
            _, info = find_run(run.store, wanted=run.name)
            # What it says of itself is not what the table holds, or the table is refused.
            try:
                return run.parts(info)
            finally:
                run.store.write(file, data)

        return read

    yield Target(
        name="run.json: bytes, seal right or not",
        seeds=forms_of(data),
        change=mutated_form,
        prepare=lambda made: found(bytes_of(made)),
        weight=4,
    )
    yield Target(
        name="run.json: values, seal right",
        seeds=(json.loads(unseal(data) or b""),),
        change=replaced,
        prepare=lambda made: found(seal(canonical_json(made))),
        weight=4,
    )


def _parts(run: RunFolder, *, info: RunInfo, file: str, data: bytes) -> Iterator[Target]:
    def followed(made: bytes) -> Reading:
        def read() -> object:
            run.store.write(file, made)
            try:
                return RunFollower.open(run, info=info.model_copy(update={"parts_sha256": digest(made)})).look().figures()
            finally:
                run.store.write(file, data)

        return read

    table = pq.read_table(io.BytesIO(data))

    def of_rows(made: list[Any]) -> Reading | None:
        changed = parquet_of(made, table.schema)
        return None if changed is None else followed(changed)

    yield Target(name="parts of a run: bytes, digest right", seeds=(data,), change=mutated, prepare=followed, weight=1)
    yield Target(
        name="parts of a run: values, digest right",
        seeds=(table.to_pylist(),),
        change=row_of_a_table,
        prepare=of_rows,
        weight=1,
    )


def _reports(run: RunFolder, *, info: RunInfo, part: str) -> Target:
    report = {"unit": part, "fatal": True, "kind": "SourceError", "message": "no such file", "traceback": ""}
    parts = run.parts(info)

    def prepare(made: bytes) -> Reading:
        def read() -> object:
            run.store.write(f"{run.path}/errors/{part}.json", made)
            try:
                counter = RunCounter(run, parts=parts)
                counter.look()
                return counter.failures(most=5)
            finally:
                run.store.remove(f"{run.path}/errors/{part}.json")

        return read

    return Target(
        name="reports of errors: bytes",
        seeds=(json.dumps(report).encode(), json.dumps({**report, "fatal": False}).encode()),
        hostile=(_DEEP,),
        change=mutated,
        prepare=prepare,
        weight=1,
    )


def _holds(labeller: Labeller) -> Iterator[Target]:
    memory = Cache.at("memory://fuzz-holds")
    requests = [labeller.request.fingerprint(), "ab" * 32]
    with hold_requests(memory, requests=requests):
        (name,) = memory.store.names("runs/holds")
        hold = memory.store.read(name)
    longer = {**json.loads(hold), "seconds": 1e6}

    def held(data: bytes) -> Reading:
        def read() -> object:
            memory.store.write(name, data)
            now = memory.store.look(name).modified
            return held_requests(memory.store, now=now), held_runs(memory.store, now=now)

        return read

    def from_values(made: Any) -> Reading:
        return held(json.dumps(made).encode())

    yield Target(
        name="holds: bytes", seeds=(hold, canonical_json(longer)), hostile=(_DEEP,), change=mutated, prepare=held, weight=3
    )
    yield Target(name="holds: values", seeds=(json.loads(hold), longer), change=replaced, prepare=from_values, weight=3)
