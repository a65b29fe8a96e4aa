"""Millions of broken inputs for every decoder and reader of manifests: only declared errors, little memory, little time."""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.blocks import encode_block
from storage.cache import Cache
from storage.errors import DecantError
from storage.hashing import canonical_json, digest, seal, unseal
from storage.label_set import LabelSet
from storage.parts import PartRecord
from storage.parts_table import PARTS_SCHEMA, read_parts_table
from storage.sources import SourceMemo, index_source
from tests.benchmarks.report import Goal, Report, Table
from tests.reliability.mutation import mutated, replaced
from tests.storage.blocks import block_bytes, sealed
from tests.storage.caches import make_labeller, make_request
from tests.storage.test_fuzz_decoders import RENAMED, VALID, header_of, streams_of

NUM_INPUTS = 1_000_000
MEMORY_BYTES = 64 << 20
"""Most that an input of under 10 kB may make a reader allocate."""

SECONDS = 2.0
"""Most that it may take, on a busy machine."""

_EVERY_TRACED = 50
_SPACE_BYTES = 2 << 30

_METHOD = f"""\
Valid files of every kind are changed and given to what reads them: bytes flipped, set, cut, inserted and repeated; the same with every
checksum and seal put right afterwards, so that the code behind them is reached; JSON fields replaced, dropped and added; streams of
blocks changed below the compression; columns of the table of parts replaced. Targets are those of `tests/storage/test_fuzz_decoders.py`,
which says what a result must promise (sums, ranges, orders), and readers of manifests, names, requests, records and memos. Wanted: a
result that keeps its promises or a `DecantError`; anything else (another exception, a crash) is a failure. The processes may map
{_SPACE_BYTES >> 30} GiB beyond what they start with. One input of {_EVERY_TRACED} runs under `tracemalloc`; times are of all others."""

Attempt = Callable[[random.Random], Callable[[], object]]


@dataclass(kw_only=True)
class Found:
    """What a target did with its inputs."""

    num_inputs: int = 0
    num_accepted: int = 0
    num_failures: int = 0
    most_seconds: float = 0.0
    most_bytes: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def _blocks() -> Iterator[tuple[str, Attempt]]:
    def choose(rng: random.Random) -> tuple[Callable[[bytes], None], bytes]:
        return rng.choice(VALID)

    def of_bytes(rng: random.Random) -> Callable[[], object]:
        decode, whole = choose(rng)
        changed = mutated(whole, rng)
        return lambda: decode(changed)

    def with_checksum(rng: random.Random) -> Callable[[], object]:
        decode, whole = choose(rng)
        changed = sealed(mutated(whole[:-8], rng))
        return lambda: decode(changed)

    def with_header(rng: random.Random) -> Callable[[], object]:
        decode, whole = choose(rng)
        (length,) = struct.unpack("<I", whole[8:12])
        changed = block_bytes(replaced(header_of(whole), rng), whole[12 + length : -8])
        return lambda: decode(changed)

    taken_apart = [(decode, *streams_of(whole)) for decode, whole in VALID]

    def with_streams(rng: random.Random) -> Callable[[], object]:
        decode, header, valid = rng.choice(taken_apart)
        streams = dict(valid)
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(sorted(streams))
            match rng.randrange(5):
                case 0 | 1:
                    streams[name] = np.frombuffer(mutated(streams[name].tobytes(), rng), dtype=np.uint8)
                case 2:
                    streams[name] = np.full(len(streams[name]), rng.choice((0, 1, 0x7C, 0x7F, 0x80, 0xFF)), dtype=np.uint8)
                case 3:
                    other = rng.choice(sorted(streams))
                    streams[name], streams[other] = streams[other], streams[name]
                case _ if len(streams) > 1:
                    streams[rng.choice(RENAMED)] = streams.pop(name)
        # A block holds its header without the streams.
        changed = encode_block({key: value for key, value in header.items() if key != "streams"}, streams)
        return lambda: decode(changed)

    yield "blocks: bytes", of_bytes
    yield "blocks: bytes, checksum right", with_checksum
    yield "blocks: header, checksum right", with_header
    yield "blocks: streams below zstd", with_streams


def _cache_files(folder: Path) -> Iterator[tuple[str, Attempt]]:
    labeller = make_labeller(folder, dead=frozenset({("ant/001.jpg", None), ("bee/007.jpg", 1)}))
    label_set = labeller.label()
    record = labeller.make_part(index_source(labeller.source).units[0], first_view=0, num_views=2)[1].to_bytes()
    record_fields = json.loads(unseal(record) or b"")

    def record_bytes(rng: random.Random) -> Callable[[], object]:
        changed = mutated(record, rng)
        changed = seal(changed) if rng.random() < 0.5 else changed
        return lambda: PartRecord.from_bytes(changed, origin="here")

    def record_values(rng: random.Random) -> Callable[[], object]:
        changed = seal(canonical_json(replaced(record_fields, rng)))
        return lambda: PartRecord.from_bytes(changed, origin="here")

    store = label_set.cache.store
    manifest = store.read(f"{label_set.folder}/manifest.json")
    fields = json.loads(unseal(manifest) or b"")
    memory = Cache.at("memory://fuzz-reliability")
    for name in (label_set.manifest.parts_file, label_set.manifest.class_means_file):
        memory.store.write(f"{label_set.folder}/{name}", store.read(f"{label_set.folder}/{name}"))

    def opened(data: bytes) -> Callable[[], object]:
        def read() -> object:
            memory.store.write(f"{label_set.folder}/manifest.json", data)
            return LabelSet.open_id(memory, label_set=label_set.manifest.id).class_means()

        return read

    def manifest_bytes(rng: random.Random) -> Callable[[], object]:
        return opened(mutated(manifest, rng))

    def manifest_values(rng: random.Random) -> Callable[[], object]:
        return opened(seal(canonical_json(replaced(fields, rng))))

    table = store.read(f"{label_set.folder}/{label_set.manifest.parts_file}")
    rows = label_set.parts.to_pylist()

    def table_bytes(rng: random.Random) -> Callable[[], object]:
        changed = mutated(table, rng)
        return lambda: read_parts_table(changed, num_views=2, origin="here")

    def table_values(rng: random.Random) -> Callable[[], object]:
        place = rng.randrange(len(rows))
        try:
            made = pa.Table.from_pylist([*rows[:place], replaced(rows[place], rng), *rows[place + 1 :]], schema=PARTS_SCHEMA)
        except (pa.ArrowException, ValueError, TypeError, AttributeError, OverflowError):
            return table_values(rng)  # no table of these columns can say this
        file = io.BytesIO()
        pq.write_table(made, file)
        return lambda: read_parts_table(file.getvalue(), num_views=2, origin="here")

    request = make_request().to_json()

    def request_values(rng: random.Random) -> Callable[[], object]:
        data = canonical_json(replaced(request, rng))
        name = f"requests/{digest(data)}/spec.json"

        def read() -> object:
            memory.store.write(name, data)
            try:
                return memory.request(digest(data))
            finally:
                memory.store.remove(name)

        return read

    name_file = store.read("names/tiny.json")

    def name_bytes(rng: random.Random) -> Callable[[], object]:
        changed = mutated(name_file, rng) if rng.random() < 0.5 else seal(mutated(unseal(name_file) or b"", rng))

        def read() -> object:
            memory.store.write("names/tiny.json", changed)
            return memory.find_name("tiny")

        return read

    memo_file = folder / "memo.parquet"
    memo = SourceMemo(str(memo_file))
    index_source(labeller.source, memo=memo)
    memo_data = memo_file.read_bytes()

    def memo_bytes(rng: random.Random) -> Callable[[], object]:
        memo_file.write_bytes(mutated(memo_data, rng))
        return lambda: list(memo.entries())

    yield "part records: bytes", record_bytes
    yield "part records: values, seal right", record_values
    yield "manifests: bytes", manifest_bytes
    yield "manifests: values, seal right", manifest_values
    yield "tables of parts: bytes", table_bytes
    yield "tables of parts: values", table_values
    yield "requests: values, name right", request_values
    yield "names: bytes, seal right or not", name_bytes
    yield "source memos: bytes", memo_bytes


_SHARES = {
    "blocks: bytes": 60,
    "blocks: bytes, checksum right": 60,
    "blocks: header, checksum right": 20,
    "blocks: streams below zstd": 15,
    "part records: bytes": 15,
    "part records: values, seal right": 15,
    "manifests: bytes": 2,
    "manifests: values, seal right": 2,
    "tables of parts: bytes": 1,
    "tables of parts: values": 1,
    "requests: values, name right": 3,
    "names: bytes, seal right or not": 3,
    "source memos: bytes": 1,
}
"""How many inputs a target gets, by what they cost."""


def fuzz_target(attempt: Attempt, *, num_inputs: int, rng: random.Random) -> Found:
    """Give one target so many inputs."""
    found = Found()
    started = time.perf_counter()
    for number in range(num_inputs):
        action = attempt(rng)
        traced = number % _EVERY_TRACED == 0
        if traced:
            tracemalloc.start()
        before = time.perf_counter()
        try:
            action()
            found.num_accepted += 1
        except DecantError:
            pass
        except BaseException as error:  # whatever it is, it is not declared
            found.num_failures += 1
            if len(found.failures) < 3:
                found.failures.append("".join(traceback.format_exception(error)))
        elapsed = time.perf_counter() - before
        if traced:
            found.most_bytes = max(found.most_bytes, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        else:
            found.most_seconds = max(found.most_seconds, elapsed)
        found.num_inputs += 1
    found.seconds = time.perf_counter() - started
    return found


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def fuzz_all(folder: str, *, num_inputs: int, seed: int) -> dict[str, Found]:
    """Give every target its share of so many inputs."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    targets = {**dict(_blocks()), **dict(_cache_files(Path(folder)))}
    rng = random.Random(seed)
    return {
        name: fuzz_target(attempt, num_inputs=-(-num_inputs * _SHARES[name] // sum(_SHARES.values())), rng=rng)
        for name, attempt in targets.items()
    }


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Fuzz in two processes."""
    num_inputs = 3000 if quick else NUM_INPUTS
    slices = 2 if quick else 20
    totals: dict[str, Found] = {}
    with ProcessPoolExecutor(1 if quick else 2, get_context("spawn"), _limit_memory) as pool:
        waiting = [
            pool.submit(fuzz_all, str(folder / f"slice{number}"), num_inputs=-(-num_inputs // slices), seed=number)
            for number in range(slices)
        ]
        for number, future in enumerate(waiting):
            for name, found in future.result().items():
                total = totals.setdefault(name, Found())
                total.num_inputs += found.num_inputs
                total.num_accepted += found.num_accepted
                total.num_failures += found.num_failures
                total.seconds += found.seconds
                total.most_seconds = max(total.most_seconds, found.most_seconds)
                total.most_bytes = max(total.most_bytes, found.most_bytes)
                for failure in found.failures:
                    say(f"{name}: {failure}")
            say(f"{number + 1} of {slices} slices")
    rows = [
        (
            name,
            found.num_inputs,
            found.num_accepted,
            found.num_failures,
            1e6 * found.seconds / found.num_inputs,
            1e3 * found.most_seconds,
            found.most_bytes / 2**20,
        )
        for name, found in totals.items()
    ]
    goals = (
        Goal(what="inputs", measured=sum(row[1] for row in rows), limit=num_inputs, at_most=False),
        Goal(what="undeclared errors and broken promises", measured=sum(row[3] for row in rows), limit=0),
        Goal(what="longest time for one input", measured=max(f.most_seconds for f in totals.values()), limit=SECONDS, unit="s"),
        Goal(
            what="most memory for one input",
            measured=max(f.most_bytes for f in totals.values()) / 2**20,
            limit=MEMORY_BYTES >> 20,
            unit="MiB",
        ),
    )
    columns = ("target", "inputs", "accepted", "failures", "mean, us (making it too)", "longest, ms", "most memory, MiB")
    return Report(
        name="fuzz",
        title="Fuzzing: broken inputs for every decoder",
        method=_METHOD,
        tables=(Table(title="Inputs and what came of them", columns=columns, rows=tuple(rows)),),
        goals=goals,
        quick=quick,
    )
