"""A training step with cached labels against the same step with hard labels, and with the teacher running in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from pipelines.teachers import load_teacher
from pipelines.teachers.base import Teacher
from storage.cache import Cache
from storage.config import ExperimentConfig
from storage.label_set import LabelSet
from storage.sources import open_source
from storage.specs import CompactCodec
from storage.streams.base import RowStream
from storage.streams.label_stream import LabelStream
from student_training.assembly import build_loop, open_batches
from student_training.batch import Batch
from student_training.checkpoint import CheckpointStore
from student_training.job import make_job
from student_training.loop import TrainingLoop
from student_training.runtime import open_accelerator
from student_training.streams import build_source_stream
from tests.benchmarks.children import decant, write_config
from tests.benchmarks.compare import dense, differing_rows
from tests.benchmarks.pictures import write_folder
from tests.benchmarks.report import Cell, Goal, Report, Table
from tests.benchmarks.teachers import write_teacher

_GOAL = 1.03
_K = 10
_NUM_CLASSES = 1000
_NUM_VIEWS = 3
_NEVER = 10**6
Kind = Literal["cached", "hard", "live"]
_KINDS: tuple[Kind, ...] = ("cached", "hard", "live")

_METHOD = """\
Seconds a training step takes, loading of its data included: {student} at {size} px in float32, batches of {batch_size}, AdamW, views cut
at random from JPEGs of {width} x {height} pixels and decoded in the training process. Three students train in one process and take
turns, step by step, each turn beginning with another: with labels from a label set made by `decant label` (top-{k}, compact), with the
source's hard labels, and with the teacher ({teacher}) running in every step. All three read the same views of the same pictures in
every step, which is checked, as are the labels against the teacher's own. {num_steps} steps each after {num_warm_up} that are not
counted; medians. How much a live teacher costs depends on the teacher, the larger the more.
"""


@dataclass(frozen=True, kw_only=True)
class _Size:
    student: str
    teacher: str
    num_pictures: int
    batch_size: int
    num_warm_up: int
    num_steps: int
    width: int
    height: int


_FULL = _Size(
    student="tiny_vit_5m_224",
    teacher="tiny_vit_21m_224",
    num_pictures=192,
    batch_size=32,
    num_warm_up=2,
    num_steps=15,
    width=500,
    height=375,
)
_QUICK = _Size(
    student="test_vit", teacher="test_vit", num_pictures=16, batch_size=4, num_warm_up=1, num_steps=3, width=200, height=180
)


@dataclass(frozen=True, kw_only=True)
class _Contestant:
    """One student and its batches."""

    loop: TrainingLoop
    batches: Iterator[Batch]
    store: CheckpointStore
    loading_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    def step(self) -> Batch:
        """Load a batch, make an update, and note how long both took."""
        started = time.perf_counter()
        batch = next(self.batches)
        loaded = time.perf_counter()
        self.loop.run(iter([batch]), log=None, store=self.store)
        ended = time.perf_counter()
        self.loading_seconds.append(loaded - started)
        self.step_seconds.append(ended - started)
        return batch


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Label, then train three students in turn."""
    size = _QUICK if quick else _FULL
    say(f"writing {size.num_pictures} pictures")
    write_folder(folder / "pictures", num_pictures=size.num_pictures, num_classes=10, width=size.width, height=size.height)
    teacher_config = write_teacher(folder / "teacher.safetensors", name=size.teacher, num_classes=_NUM_CLASSES)
    settings = _settings(size, folder=folder, teacher=teacher_config)
    say(f"labelling {size.num_pictures * _NUM_VIEWS} views")
    decant("label", str(write_config(folder / "label.yaml", settings)))
    with ExitStack() as stack:
        configs = {kind: _config(settings, size=size, folder=folder, kind=kind) for kind in _KINDS}
        teacher = load_teacher(configs["live"].teacher)
        training = configs["cached"].training
        assert training is not None
        accelerator = stack.enter_context(open_accelerator(training))
        contestants = {}
        for kind, config in configs.items():
            job = make_job(
                config,
                stream=_stream(config, kind=kind),
                view=_label_set(config).manifest.request.view,
                num_classes=_NUM_CLASSES,
                generation_temperature=1.0,
                mean_class_probs=None,
                teacher=teacher.logits if kind == "live" else None,
            )
            loop = build_loop(job, accelerator=accelerator)
            batches = stack.enter_context(closing(open_batches(job, loop=loop)))
            contestants[kind] = _Contestant(loop=loop, batches=batches, store=CheckpointStore(folder / kind, keep=1))
        for step in range(size.num_warm_up + size.num_steps):
            order = _KINDS[step % 3 :] + _KINDS[: step % 3]
            found = {kind: contestants[kind].step() for kind in order}
            _check(found, teacher=teacher, with_labels=step == 0)
            last = ", ".join(f"{kind} {contestants[kind].step_seconds[-1]:.3f} s" for kind in _KINDS)
            say(f"step {step + 1} of {size.num_warm_up + size.num_steps}: {last}")
    return _report(contestants, size=size, height=teacher.preprocessing.view.size[0], quick=quick)


def _settings(size: _Size, *, folder: Path, teacher: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "benchmark",
        "cache": str(folder / "cache"),
        # One unit of fewer pictures than a block has rows: blocks, and so the order, are then the same with and without labels.
        "source": {"kind": "image_folder", "path": str(folder / "pictures"), "unit_size": size.num_pictures},
        "teacher": teacher,
        "views": {"kind": "random_resized_crop", "count": _NUM_VIEWS},
        "target": {"k": _K, "codec": {"kind": "compact"}},
        "generation": {"batch_size": min(32, size.num_pictures)},
    }


def _config(settings: dict[str, Any], *, size: _Size, folder: Path, kind: Kind) -> ExperimentConfig:
    training = {
        "output": str(folder / kind),
        "student": {"name": size.student, "num_classes": _NUM_CLASSES},
        "targets": {"kind": kind},
        "epochs": _NUM_VIEWS,
        "batch_size": size.batch_size,
        "device": "cpu",
        "checkpoint_every_steps": _NEVER,
        "log_every_steps": _NEVER,
    }
    return ExperimentConfig.model_validate_json(json.dumps({**settings, "training": training}))


def _label_set(config: ExperimentConfig) -> LabelSet:
    assert config.cache is not None
    return LabelSet.open(Cache.at(config.cache), name_or_id=config.name)


def _stream(config: ExperimentConfig, *, kind: Kind) -> RowStream:
    if kind != "cached":
        return build_source_stream(config)
    assert config.source is not None
    assert config.training is not None
    return LabelStream(
        _label_set(config), source=open_source(config.source), held_blocks=config.training.shuffle_window_blocks + 1
    )


def _check(found: dict[Kind, Batch], *, teacher: Teacher, with_labels: bool) -> None:
    """Compare what the students just trained on.

    Raises:
        AssertionError: they did not train on the same views, or the labels are not the teacher's.
    """
    cached = found["cached"]
    for kind, batch in found.items():
        if batch.keys != cached.keys or not torch.equal(batch.images, cached.images):
            raise AssertionError(f"step {cached.step}: {kind} and cached read different views")
    if not with_labels:
        return
    assert cached.targets is not None
    live_views = found["live"].teacher_views
    assert live_views is not None
    probs, class_ids = torch.softmax(teacher.logits(live_views.numpy()), dim=1).topk(_K, dim=1)
    exact = dense(class_ids.numpy(), probs.numpy(), num_classes=_NUM_CLASSES)
    stored = dense(cached.targets.class_ids.numpy(), cached.targets.probs.numpy(), num_classes=_NUM_CLASSES)
    if differing_rows(stored, exact, levels=CompactCodec().levels).mean() > 0.1:
        raise AssertionError("the cached labels are not those of the teacher")


def _report(contestants: dict[Kind, _Contestant], *, size: _Size, height: int, quick: bool) -> Report:
    counted = slice(size.num_warm_up, None)
    steps = {kind: contestants[kind].step_seconds[counted] for kind in _KINDS}
    middle = {kind: median(seconds) for kind, seconds in steps.items()}
    rows: list[tuple[Cell, ...]] = []
    for kind, title in (("cached", "cached labels"), ("hard", "hard labels"), ("live", "live teacher")):
        seconds = steps[kind]
        loading = median(contestants[kind].loading_seconds[counted])
        paired = median(mine / theirs for mine, theirs in zip(seconds, steps["hard"], strict=True))
        rows.append((title, middle[kind], min(seconds), max(seconds), loading, middle[kind] / middle["hard"], paired))
    goal = Goal(
        what="step with cached labels over step with hard labels", measured=middle["cached"] / middle["hard"], limit=_GOAL
    )
    return Report(
        name="training",
        title="Training",
        method=_METHOD.format(
            **{
                name: getattr(size, name)
                for name in ("student", "teacher", "batch_size", "width", "height", "num_steps", "num_warm_up")
            },
            size=height,
            k=_K,
        ),
        tables=(
            Table(
                title="Seconds a step",
                columns=("targets", "median", "fastest", "slowest", "of it loading", "over hard", "over hard, step by step"),
                rows=tuple(rows),
            ),
        ),
        goals=(goal,),
        quick=quick,
    )
