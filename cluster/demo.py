"""The demonstration: pictures are labelled on the cluster and by processes of this machine, and every digest is compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.assembly import Shape, bring_up, python_folder, submission_arguments, submission_environment, take_down
from cluster.comparison import FOLDERS_THAT_COUNT, KindComparison, cache_files, compare_caches
from cluster.errors import ClusterError
from cluster.object_store import BUCKET, objects, put_files
from cluster.pictures import PIXELS, write_pictures
from cluster.processes import Processes
from cluster.shipping import INSTALLED, has_decant

_ROOT = Path(__file__).resolve().parents[1]
_NUM_CLASSES = 10
_NUM_VIEWS = 2
_SOURCE = "pictures"
_CACHE = "cache"


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """What the demonstration does.

    Attributes:
        folder: holds the cluster's state, the pictures, the teacher, configs and the local cache.
        teacher: checkpoint of timm's resnet10t for the ten classes; None: one that is trained for a moment.
    """

    folder: Path
    shape: Shape
    num_pictures: int
    teacher: Path | None


def label_config(*, source: str, cache: str, teacher: Path) -> dict[str, Any]:
    """Return the experiment, which but for these two places is the same for everybody who runs it."""
    return {
        "name": "cluster-demo",
        "cache": cache,
        "source": {"kind": "webdataset", "path": f"{source}/pictures-*.tar"},
        "teacher": {
            "kind": "timm",
            "name": "resnet10t",
            "checkpoint": str(teacher),
            "num_classes": _NUM_CLASSES,
            "device": "cpu",
        },
        "views": {
            "kind": "random_resized_crop",
            "count": _NUM_VIEWS,
            "size": [PIXELS + 4, PIXELS + 4],
            "scale": [0.6, 1.0],
            "interpolation": "bilinear",
        },
        "target": {"k": 5, "codec": {"kind": "compact"}},
        # One thread: hosts that share a machine would be in each other's way.
        "generation": {"batch_size": 128, "torch_threads": 1},
    }


def _teacher_config(*, source: str, output: str) -> dict[str, Any]:
    size = [PIXELS + 4, PIXELS + 4]
    grey = [0.3, 0.3, 0.3]
    return {
        "name": "cluster-demo-teacher",
        "source": {"kind": "webdataset", "path": f"{source}/pictures-*.tar"},
        "views": {"kind": "random_resized_crop", "size": size, "scale": [0.6, 1.0], "interpolation": "bilinear"},
        "training": {
            "output": output,
            "student": {"name": "resnet10t", "num_classes": _NUM_CLASSES},
            "targets": {"kind": "hard"},
            "preprocessing": {"size": size, "mean": grey, "std": grey, "interpolation": "bilinear", "crop_fraction": 1.0},
            "optimizer": {"name": "adamw", "learning_rate": 2.0e-3},
            "epochs": 1,
            "batch_size": 64,
        },
    }


def decant(*words: str, environment: dict[str, str] | None = None, log: Path) -> dict[str, Any]:
    """Run a command of `decant` to its end and return its figures.

    Raises:
        ClusterError: it failed; the message holds what it said.
    """
    command = [sys.executable, "-m", "decant", *words, "--json"]
    with log.open("w+") as errors:
        finished = subprocess.run(
            command,
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
            check=False,
        )
        errors.seek(0)
        said = errors.read().strip()
    if finished.returncode:
        raise ClusterError(f"`decant {' '.join(words)}` ended with status {finished.returncode}: {said}")
    figures: dict[str, Any] = json.loads(finished.stdout)
    return figures


def _write(path: Path, data: dict[str, Any]) -> str:
    path.write_text(json.dumps(data, indent=1))
    return str(path)


def prepare(demo: Demo, *, say: Callable[[str], None]) -> tuple[Path, Path, str]:
    """Make pictures and teacher where they are not there, and return their paths and what the pictures are."""
    folder = demo.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pictures = folder / _SOURCE
    what = write_pictures(pictures, num_pictures=demo.num_pictures)
    if demo.teacher is not None:
        return pictures, demo.teacher.resolve(), what
    say("training a small teacher on them")
    config = _write(folder / "teacher.json", _teacher_config(source=str(pictures), output=str(folder / "teacher")))
    trained = decant("train", config, log=folder / "train.log")
    return pictures, Path(trained["student"]), what


def label_here(demo: Demo, *, pictures: Path, teacher: Path) -> dict[str, Any]:
    """Label by as many processes of this machine as the cluster has workers, into a fresh local cache."""
    folder = demo.folder.resolve()
    cache = folder / "local"
    shutil.rmtree(cache, ignore_errors=True)
    config = _write(folder / "local.json", label_config(source=str(pictures), cache=str(cache), teacher=teacher))
    workers = str(demo.shape.num_hosts * demo.shape.workers_per_host)
    return {**decant("label", config, "--workers", workers, log=folder / "local.log"), "cache": str(cache)}


def label_on_cluster(
    demo: Demo, processes: Processes, *, pictures: Path, teacher: Path, through_job_server: bool
) -> dict[str, Any]:
    """Label on the cluster, from the store into the store."""
    folder = demo.folder.resolve()
    store = processes.facts["store"].removeprefix("http://")
    put_files(store, folder=pictures, prefix=_SOURCE)
    data = label_config(source=f"s3://{BUCKET}/{_SOURCE}", cache=f"s3://{BUCKET}/{_CACHE}", teacher=teacher)
    config = _write(folder / "cluster.json", data)
    arguments = submission_arguments(processes, through_job_server=through_job_server)
    return decant("label", config, *arguments, environment=submission_environment(processes), log=folder / "cluster.log")


def files_on_cluster(processes: Processes, *, cache: str) -> dict[str, bytes]:
    """Return the files of a cache in the store that readers look at."""
    store = processes.facts["store"].removeprefix("http://")
    return {f"{name}/{rest}": data for name in FOLDERS_THAT_COUNT for rest, data in objects(store, prefix=f"{cache}/{name}")}


def units_by_worker(processes: Processes, *, cache: str) -> list[int]:
    """Return how many units each worker of a run labelled."""
    store = processes.facts["store"].removeprefix("http://")
    bundles = [json.loads(data) for name, data in objects(store, prefix=f"{cache}/runs") if "/times/" in name]
    return [sum("part" in entry for entry in entries) for entries in bundles]


def table(
    here: dict[str, Any], there: dict[str, Any], *, what: str, shape: Shape, units: list[int], kinds: list[KindComparison]
) -> str:
    """Return what was done, for people."""
    workers = shape.num_hosts * shape.workers_per_host
    figures = [
        ("", f"this machine, {workers} processes", f"Flink, {shape.num_hosts} hosts x {shape.workers_per_host}"),
        ("pictures", *(f"{run['num_samples']:,}" for run in (here, there))),
        ("rows labelled", *(f"{run['num_computed_rows']:,}" for run in (here, there))),
        ("dead letters", *(f"{run['num_dead_letters']:,}" for run in (here, there))),
        ("seconds, with start-up", *(f"{run['seconds']:.1f}" for run in (here, there))),
        ("rows/s, without start-up", *(f"{run['rows_per_second'] or 0:,.0f}" for run in (here, there))),
        ("units a worker", "", " + ".join(str(count) for count in units)),
    ]
    compared = [("same bytes?", "files", "sha256 over all")]
    for kind in kinds:
        verdict = "all equal" if not kind.differing else f"{len(kind.differing)} DIFFER: {', '.join(kind.differing[:3])}"
        compared.append((f"{kind.kind}: {verdict}", str(kind.num_files), kind.digest[:16]))
    text = f"{what}, {PIXELS}x{PIXELS}, {_NUM_VIEWS} views each\n"
    for rows in (figures, compared):
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        text += "\n" + "\n".join(f"  {line}" for line in lines) + "\n"
    return text


def _say_who_has_decant(demo: Demo, processes: Processes, *, say: Callable[[str], None]) -> None:
    numbers = range(1, demo.shape.num_hosts + 1)
    brought = [number for number in numbers if has_decant(python_folder(processes, number=number))]
    say(f"the job brought Decant to {len(brought)} of {demo.shape.num_hosts} hosts, as {processes.facts['shipped']}")


def run_demo(demo: Demo, *, downloads: Path, jar: Path | None, say: Callable[[str], None]) -> int:
    """Run the demonstration; 0 where every digest is equal. Whatever happens, nothing is left running."""
    if Processes.find(demo.folder) is not None:
        say("taking down what an earlier demonstration left")
        take_down(demo.folder)
    say("writing pictures")
    pictures, teacher, what = prepare(demo, say=say)
    say("labelling on this machine")
    here = label_here(demo, pictures=pictures, teacher=teacher)
    processes = bring_up(demo.folder, shape=demo.shape, downloads=downloads, jar=jar, say=say)
    try:
        apart = processes.facts["disks"].splitlines() if teacher.is_relative_to(demo.folder.resolve()) else []
        for disk in apart:
            # Hosts with disks of their own have the weights and nothing else; everything besides is in the store.
            weights = Path(disk) / teacher.relative_to(demo.folder.resolve())
            weights.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(teacher, weights)
        say(f"labelling on Flink, from s3:// into s3://; Flink's page: {processes.facts['flink']}")
        there = label_on_cluster(
            demo, processes, pictures=pictures, teacher=teacher, through_job_server=demo.shape.with_job_server
        )
        if demo.shape.code != INSTALLED:
            _say_who_has_decant(demo, processes, say=say)
        kinds = compare_caches(cache_files(Path(here["cache"])), files_on_cluster(processes, cache=_CACHE))
        say(table(here, there, what=what, shape=demo.shape, units=units_by_worker(processes, cache=_CACHE), kinds=kinds))
    finally:
        num_ended = processes.stop_all()
        say(f"taken down: {num_ended} processes ended")
    return 0 if not any(kind.differing for kind in kinds) else 1
