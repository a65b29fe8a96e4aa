"""Steps of `driver`, each a process of its own that prints one JSON object."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.peak_memory import peak_bytes


class GraphBuilt(BaseException):
    """The pipeline is built: here a run would begin."""


class Clock:
    """Processor seconds of steps."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self._started = time.process_time()

    def step(self, name: str) -> None:
        """End a step, and begin the next."""
        now = time.process_time()
        self.steps[name] = now - self._started
        self._started = now


def fill(*, url: str, num_units: int) -> dict[str, Any]:
    """Commit parts of so many units as runs that were killed leave them: records and tars, but no label set. Tars hold zeros."""
    from storage.cache import Cache
    from storage.parts import BlockExtent, Extent, PartRecord, PartStatistics
    from storage.specs import PartSpec
    from tests.reliability.listed_units import SAMPLES_A_UNIT, unit_digest, unit_name
    from tests.storage.caches import make_request

    cache = Cache.at(url)
    request = cache.add_request(make_request(num_views=1))
    folder = Path(cache.store.path(cache.request_folder(request)))
    for number in range(num_units):
        tar_bytes = 60_000 + number % 512
        blocks = tuple(
            BlockExtent(
                offset=10_752 + 12_800 * block,
                num_bytes=12_000,
                checksum=f"{number:016x}",
                view=0,
                first_sample=256 * block,
                num_samples=min(256, SAMPLES_A_UNIT - 256 * block),
                num_rows=min(256, SAMPLES_A_UNIT - 256 * block),
            )
            for block in range(-(-SAMPLES_A_UNIT // 256))
        )
        part = PartSpec(request=request, unit_digest=unit_digest(number), first_view=0, num_views=1)
        record = PartRecord(
            part=part,
            unit_name=unit_name(number),
            num_samples=SAMPLES_A_UNIT,
            tar_name=f"{part.name}.{number:016x}.tar",
            tar_bytes=tar_bytes,
            tar_sha256=f"{number:064x}",
            samples=Extent(offset=512, num_bytes=9000, checksum=f"{number:016x}"),
            class_means=Extent(offset=59_000, num_bytes=200, checksum=f"{number:016x}"),
            blocks=blocks,
            dead_letters=(),
            statistics=PartStatistics(num_rows=SAMPLES_A_UNIT),
            provenance={"made": "for a measurement"},
        )
        (folder / f"{part.name}.json").write_bytes(record.to_bytes())
        with (folder / record.tar_name).open("wb") as tar:
            tar.truncate(tar_bytes)
    return {}


def build(*, url: str, num_units: int, num_few: int) -> dict[str, Any]:
    """Do what `decant label` does until its pipeline would start, over a source of names alone.

    Args:
        num_few: so many of the units are then planned anew, over an empty cache: how large is the job graph of these?
    """
    clock = Clock()
    import pipelines.label as label
    from pipelines.describe import describe_plan
    from pipelines.engine import pipeline_options
    from pipelines.survey import Survey
    from storage.cache import Cache
    from storage.config import ExperimentConfig
    from storage.sources import IndexedUnit, SourceUnit
    from tests.reliability.listed_units import SAMPLES_A_UNIT, ListedUnits, unit_digest, unit_name
    from tests.storage.caches import NUM_CLASSES, make_request

    options = pipeline_options([])
    clock.step("imports")
    config = ExperimentConfig.model_validate(
        {
            "name": "driver",
            "cache": url,
            "source": {"kind": "webdataset", "path": "s3://somewhere/train-{0000000..9999999}.tar"},
            "teacher": {"kind": "timm", "name": "test_vit", "num_classes": NUM_CLASSES, "checkpoint": "teacher.safetensors"},
            "target": {"k": 3},
        }
    )
    assert config.source is not None
    assert config.teacher is not None
    units = tuple(
        IndexedUnit(
            unit=SourceUnit(
                name=unit_name(number),
                locator={"url": f"s3://somewhere/{unit_name(number)}"},
                stat_token=unit_digest(number)[::-1],
            ),
            num_samples=SAMPLES_A_UNIT,
            digest=unit_digest(number),
            key_hash=number,
        )
        for number in range(num_units)
    )
    source = ListedUnits(0)
    clock.step("units of the source, made up")
    bytes_of_units = peak_bytes()
    survey = Survey(
        config=config,
        cache=Cache.at(url),
        source=source,
        source_config=config.source,
        teacher_config=config.teacher,
        request=make_request(num_views=1),
        units=units,
        teacher_loaded=False,
    )
    graphs: list[int] = []

    def capture(pipeline: Any, **_options: Any) -> None:
        graphs.append(len(pipeline.to_runner_api().SerializeToString()))
        raise GraphBuilt

    label.survey_targets = lambda *_arguments, **_options: {"labels": survey}  # type: ignore[assignment]
    label.run_pipeline = capture  # type: ignore[assignment]
    (run,) = label.plan_runs(config, progress=False)
    clock.step("plan")
    with contextlib.suppress(GraphBuilt):
        label.run_labels([run], options=options, progress=False)
    clock.step("write task files, build the pipeline")
    planned_peak_bytes = peak_bytes()
    describe_plan(run)
    clock.step("say what is planned (`decant plan`)")
    num_tasks = len(run.plan.tasks)
    survey = replace(survey, cache=Cache.at(f"{url}-few"), units=units[:num_few])
    with contextlib.suppress(GraphBuilt):
        label.run_labels(label.plan_runs(config, progress=False), options=options, progress=False)
    graph_bytes, few_graph_bytes = graphs
    return {
        "steps": clock.steps,
        "graph_bytes": graph_bytes,
        "few_graph_bytes": few_graph_bytes,
        "num_tasks": num_tasks,
        "bytes_of_units": bytes_of_units,
        "peak_bytes": planned_peak_bytes,
    }


def main() -> None:
    """Take the step and what it needs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("fill", "build"))
    parser.add_argument("--url", required=True)
    parser.add_argument("--num-units", type=int, required=True)
    parser.add_argument("--num-few", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.step == "fill":
        found = fill(url=arguments.url, num_units=arguments.num_units)
    else:
        found = build(url=arguments.url, num_units=arguments.num_units, num_few=arguments.num_few)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
