"""Steps of `scale`, each a process of its own that prints one JSON object."""

from __future__ import annotations

import contextlib
import cProfile
import io
import json
import pstats
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.peak_memory import peak_bytes


def label(config: str) -> dict[str, Any]:
    """Run `decant label` in this process and say how often a teacher was loaded; a second time under a profiler."""
    started = time.perf_counter()
    import decant
    import pipelines.describe
    import pipelines.engine
    import pipelines.label
    import pipelines.teachers

    pipelines.engine.pipeline_options([])
    import_seconds = time.perf_counter() - started
    loads = 0

    def counting(kind: str, load: Any) -> Any:
        def loader(teacher: Any) -> Any:
            nonlocal loads
            loads += 1
            return load(teacher)

        return loader

    for kind, load in list(pipelines.teachers.LOADERS.items()):
        pipelines.teachers.LOADERS[kind] = counting(kind, load)
    output = io.StringIO()
    started, started_cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(output):
        status = decant.main(["label", config, "--json"])
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    if status:
        raise SystemExit(status)
    found = json.loads(output.getvalue())
    result = {
        "loads": loads,
        "num_computed_rows": found["num_computed_rows"],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "import_seconds": import_seconds,
    }
    profiler = cProfile.Profile()
    with contextlib.redirect_stdout(io.StringIO()), profiler:
        decant.main(["label", config, "--json"])
    return {**result, "profile": _own_functions(profiler)}


def _own_functions(profiler: cProfile.Profile) -> list[tuple[str, int, float]]:
    """Return our functions by the time until they return: name, calls, seconds."""
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = []
    for (file, _, name), (_, calls, _, cumulative, _) in stats.items():
        for package in ("pipelines", "storage"):
            place = file.rpartition(f"/{package}/")[2]
            if place != file and name not in {"<module>"}:
                rows.append((f"{package}/{place} {name}", calls, cumulative))
    return sorted(rows, key=lambda row: -row[2])[:25]


def write(url: str, count: str) -> dict[str, Any]:
    """Write the manifest and table of a label set of so many parts, one block each; of records and tars the names alone."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from storage.cache import Cache
    from storage.hashing import canonical_json, digest, seal
    from storage.label_set import Manifest
    from storage.parts import PartStatistics, encode_class_means
    from storage.parts_table import PARTS_OPTIONS, PARTS_SCHEMA
    from tests.reliability.listed_units import SAMPLES_A_UNIT, unit_digest, unit_name
    from tests.storage.caches import NUM_CLASSES, make_request

    request = make_request(num_views=1)
    cache = Cache.at(url)
    fingerprint = cache.add_request(request)
    rng = np.random.default_rng(0)
    num_parts = int(count)
    rows_a_part = SAMPLES_A_UNIT
    folder = Path(cache.store.path(cache.request_folder(fingerprint)))
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, PARTS_SCHEMA, **PARTS_OPTIONS) as writer:
        for first in range(0, num_parts, 8192):
            size = min(8192, num_parts - first)
            digests = [unit_digest(first + number) for number in range(size)]
            sums = [rng.bytes(32).hex() for _ in range(size)]
            rows = [
                {
                    "unit_name": unit_name(first + number),
                    "unit_digest": of_unit,
                    "request": fingerprint,
                    "num_samples": rows_a_part,
                    "first_view": 0,
                    "num_views": 1,
                    "tar_name": f"{of_unit[:32]}.v00000-00001.{tar_sha256[:16]}.tar",
                    "tar_bytes": 60_000 + number,
                    "tar_sha256": tar_sha256,
                    "samples": {"offset": 512, "num_bytes": 9000, "checksum": tar_sha256[:16]},
                    "blocks": [
                        {
                            "offset": 10752,
                            "num_bytes": 40_000 + number,
                            "checksum": tar_sha256[16:32],
                            "view": 0,
                            "first_sample": 0,
                            "num_samples": rows_a_part,
                            "num_rows": rows_a_part,
                        }
                    ],
                }
                for number, (of_unit, tar_sha256) in enumerate(zip(digests, sums, strict=True))
            ]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=PARTS_SCHEMA))
            for row in rows:
                (folder / f"{row['unit_digest'][:32]}.v00000-00001.json").touch()
                (folder / row["tar_name"]).touch()
    table = buffer.getvalue()
    means = encode_class_means(np.full(NUM_CLASSES, 1 / NUM_CLASSES))
    identity = digest(table)[:32]
    manifest = Manifest(
        id=identity,
        name="many",
        request=request,
        num_units=num_parts,
        num_samples=num_parts * rows_a_part,
        num_views=1,
        num_rows=num_parts * rows_a_part,
        num_dead_letters=0,
        num_parts=num_parts,
        parts_bytes=60_000 * num_parts,
        parts_file=f"parts-{digest(table)[:16]}.parquet",
        parts_sha256=digest(table),
        class_means_file=f"class_means-{digest(means)[:16]}.block",
        class_means_sha256=digest(means),
        classes=None,
        source={"kind": "webdataset", "path": "somewhere"},
        statistics=PartStatistics(num_rows=num_parts * rows_a_part),
        provenance=({"made": "for a measurement"},),
    )
    home = f"label_sets/{identity}"
    cache.store.write(f"{home}/{manifest.parts_file}", table)
    cache.store.write(f"{home}/{manifest.class_means_file}", means)
    cache.store.write(f"{home}/manifest.json", seal(canonical_json(manifest.model_dump(mode="json"))))
    cache.point_name("many", label_set=identity)
    return {"table_bytes": len(table)}


def open_many(url: str) -> dict[str, Any]:
    """Open a label set by its name, make its stream and plan an epoch."""
    from storage.cache import Cache
    from storage.label_set import LabelSet
    from storage.order import EpochOrder
    from storage.streams.label_stream import LabelStream
    from tests.reliability.listed_units import ListedUnits

    clock = _Clock()
    label_set = LabelSet.open(Cache.at(url), name_or_id="many")
    label_set.class_means()
    clock.step("open by name, check the table")
    # The source's own listing is its own cost: names alone, here.
    source = ListedUnits(label_set.parts.num_rows)
    source.units()
    clock.step("list the source (not counted)")
    stream = LabelStream(label_set, source=source)
    clock.step("join names of units, index blocks")
    block_rows = stream.block_rows(epoch=0)
    order = EpochOrder(block_rows, seed=0, epoch=0, window_blocks=16)
    clock.step("order of the epoch")
    block_ids, _ = order.slice(0, 1024)
    label_set.tar_path(int(block_ids[0]))
    stream.identity()
    clock.step("first batch of the order")
    return clock.figures()


def plan_many(url: str, count: str) -> dict[str, Any]:
    """Plan what `decant label` would do over a label set that holds all of it, without the frameworks that labelling needs."""
    from pipelines.plan import make_plan
    from storage.cache import Cache
    from storage.standing import still_stands
    from storage.upkeep.leases import hold_requests
    from tests.reliability.listed_units import ListedUnits
    from tests.storage.caches import make_request

    clock = _Clock()
    # What the source holds is its own memo's cost.
    units = ListedUnits(int(count)).indexed()
    clock.step("list and index the source (not counted)")
    cache = Cache.at(url)
    plan = make_plan(cache, request=make_request(num_views=1), units=units, num_views=1, views_per_part=1, name="many")
    clock.step("plan")
    if plan.tasks or plan.standing is None:
        raise AssertionError(f"{len(plan.tasks)} tasks where nothing is to be done")
    with hold_requests(cache, requests=plan.requests):
        if not still_stands(cache, plan.standing):
            raise AssertionError("the label set is gone")
        cache.point_name("many", label_set=plan.label_set)
    clock.step("commit the same label set again")
    return clock.figures()


class _Clock:
    """Times steps, on the wall and of the processor."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[float, float]] = {}
        self._started = self._now()

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def step(self, name: str) -> None:
        """End a step, and begin the next."""
        now = self._now()
        self._steps[name] = (now[0] - self._started[0], now[1] - self._started[1])
        self._started = now

    def figures(self) -> dict[str, Any]:
        """Return seconds of all steps that count, and the most memory so far."""
        counted = [seconds for name, seconds in self._steps.items() if "not counted" not in name]
        seconds, cpu_seconds = (sum(column) for column in zip(*counted, strict=True))
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "steps": self._steps, "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    result = {"label": label, "write": write, "open": open_many, "plan": plan_many}[sys.argv[1]](*sys.argv[2:])
    sys.stdout.write(json.dumps(result) + "\n")
