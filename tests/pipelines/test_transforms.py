"""The Beam side alone: tasks by reference, committed parts, and errors that are written down."""

from __future__ import annotations

import json
import logging
import shutil

import apache_beam as beam
import pytest
import torch
from apache_beam.internal import pickler
from apache_beam.portability import common_urns
from apache_beam.testing.util import assert_that, equal_to

from pipelines import transforms
from pipelines.engine import make_pipeline, pipeline_options
from pipelines.label_unit import LabelTask
from pipelines.plan import make_plan
from pipelines.request import resolve_request
from pipelines.task_files import TaskFiles, task_from_json, task_to_json
from pipelines.teacher_memo import TeacherFacts
from pipelines.transforms import LabelTasks, LabelUnits, NameTaskFiles, ReadTasks, shared_teacher
from storage.cache import Cache
from storage.errors import AnotherCacheError, MismatchError
from storage.label_runs.folder import RunFolder
from storage.sources import SourceUnit, index_source, open_source
from storage.specs import PartSpec
from tests.pipelines.networks import RAISE_COLOUR
from tests.pipelines.support import (
    colour_teacher,
    config_of,
    experiment,
    folder_source,
    plain,
    save_teacher,
    timm_teacher,
    write_folder,
)


@pytest.fixture(autouse=True)
def _quiet():
    logger, threads = logging.getLogger("apache_beam"), torch.get_num_threads()
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)
    torch.set_num_threads(threads)
    transforms._teachers.clear()


class Run:
    """What `run_label` prepares, taken apart."""

    def __init__(self, folder, *, teacher=None, pictures=None, **sections):
        pictures = pictures or write_folder(folder / "pictures", per_class=4)
        source = folder_source(pictures, unit_size=4)
        self.pictures = pictures
        self.config = config_of(
            experiment(cache=folder / "cache", source=source, teacher=teacher or colour_teacher(), views=1, **sections)
        )
        self.cache = Cache.at(self.config.cache)
        self.request = resolve_request(self.config, facts=TeacherFacts.of(shared_teacher(self.config.teacher)))
        self.cache.add_request(self.request)
        self.tasks = make_plan(
            self.cache,
            request=self.request,
            units=index_source(open_source(self.config.source)).units,
            num_views=1,
            views_per_part=1,
        ).tasks
        for number, task in enumerate(self.tasks):
            self.cache.store.write(f"runs/r/tasks/{number}.json", json.dumps([[task_to_json(task)]]).encode())

    @property
    def label_units(self):
        return LabelUnits(
            cache=self.cache,
            run="runs/r",
            requests={self.request.fingerprint(): self.request},
            teacher=self.config.teacher,
            source=self.config.source,
            generation=self.config.generation,
        )

    def start(self, *, expected=None):
        pipeline = make_pipeline(pipeline_options([]), workers=1)
        files = [f"runs/r/tasks/{number}.json" for number in range(len(self.tasks))]
        names = pipeline | beam.Create(files) | LabelTasks(store=self.cache.store, label_units=self.label_units)
        if expected is not None:
            assert_that(names, equal_to(expected))
        return pipeline.run()

    def reports(self):
        return [json.loads(self.cache.store.read(name)) for name in self.cache.store.names("runs/r/errors")]


def counters(result):
    return {
        metric.key.metric.name: metric.result
        for metric in result.metrics().query()["counters"]
        if metric.key.metric.namespace == "decant"
    }


def test_a_task_survives_its_json_form():
    unit = SourceUnit(name="é.tar", locator={"files": ["a", "b"], "labels": [0, 1]}, stat_token="t")
    part = PartSpec(request="0" * 64, unit_digest="1" * 64, first_view=8, num_views=3)
    task = LabelTask(unit=unit, part=part, num_samples=2)
    assert task_from_json(json.loads(json.dumps(task_to_json(task)))) == task


def test_tasks_come_out_of_their_files(tmp_path):
    run = Run(tmp_path)
    assert list(ReadTasks(run.cache.store).process("runs/r/tasks/1.json")) == [(run.tasks[1],)]


def test_the_functions_travel_by_reference_and_small(tmp_path):
    run = Run(tmp_path)
    data = pickler.dumps(run.label_units)
    assert len(data) < 5000
    again = pickler.loads(data)
    assert again._cache.store.url == run.cache.store.url
    assert (again._requests, again._generation) == ({run.request.fingerprint(): run.request}, run.config.generation)


def test_tasks_are_spread_once_and_right_before_they_are_labelled(tmp_path):
    # Of two reshuffles in a row Flink drops the second: one worker would get all tasks of a file.
    run = Run(tmp_path)
    pipeline = beam.Pipeline()
    files = TaskFiles(folder="runs/20260131-120000-0123abcd", num_files=2)
    _ = pipeline | NameTaskFiles(files) | LabelTasks(store=run.cache.store, label_units=run.label_units)
    transforms_made = pipeline.to_runner_api().components.transforms.values()
    spread = [made.unique_name for made in transforms_made if made.spec.urn == common_urns.composites.RESHUFFLE.urn]
    assert spread == ["LabelTasks/SpreadTasks"]


def test_every_task_becomes_a_committed_part_and_is_counted(tmp_path):
    run = Run(tmp_path)
    result = run.start(expected=[task.part.name for task in run.tasks])
    assert all(run.cache.find_part(task.part) is not None for task in run.tasks)
    assert counters(result) == {"units_committed": 3, "rows": 12, "dead_letters": 0}
    times = [entry for name in run.cache.store.names("runs/r/times") for entry in json.loads(run.cache.store.read(name))]
    assert sorted(entry["part"] for entry in times) == sorted(task.part.name for task in run.tasks)
    assert all(0 < entry["teacher_seconds"] < entry["seconds"] for entry in times)
    assert run.reports() == []


def test_a_part_that_is_there_already_is_not_computed_again(tmp_path):
    run = Run(tmp_path)
    run.start()
    records = {name: run.cache.store.read(name) for name in run.cache.store.names("requests")}
    assert counters(run.start(expected=[task.part.name for task in run.tasks])) == {"units_reused": 3}
    assert {name: run.cache.store.read(name) for name in run.cache.store.names("requests")} == records
    times = [entry for name in run.cache.store.names("runs/r/times") for entry in json.loads(run.cache.store.read(name))]
    assert sum(entry.get("num_passed_rows", 0) for entry in times) == 12
    assert sum("part" in entry for entry in times) == 3


def test_a_worker_is_heard_while_it_goes_past_what_others_made(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.start()
    monkeypatch.setattr(transforms, "BEAT_SECONDS", 0.0)
    label_units, folder = run.label_units, RunFolder(store=run.cache.store, name="r")
    label_units.setup()
    label_units.start_bundle()
    for task in run.tasks:
        heard = folder.last_heard()
        assert list(label_units.process((task,))) == [task.part.name]
        assert folder.last_heard() != heard


def test_a_unit_that_cannot_be_labelled_is_written_down_and_the_others_go_on(tmp_path):
    run = Run(tmp_path)
    (run.pictures / "green" / "002.png").write_bytes(b"other bytes")
    result = run.start(expected=[run.tasks[0].part.name, run.tasks[2].part.name])
    (report,) = run.reports()
    assert (report["unit"], report["fatal"], report["kind"]) == (run.tasks[1].part.name, False, "SourceError")
    assert "changed since it was indexed" in report["message"]
    assert run.cache.find_part(run.tasks[1].part) is None
    assert counters(result)["units_failed"] == 1


def test_another_teacher_than_was_planned_is_refused_before_anything_is_labelled(tmp_path):
    checkpoint = tmp_path / "teacher.safetensors"
    save_teacher(checkpoint)
    run = Run(tmp_path, teacher=timm_teacher(checkpoint))
    save_teacher(checkpoint, seed=1)
    with pytest.raises(MismatchError, match="loaded another teacher than was planned: weights_sha256"):
        run.start()
    (report,) = run.reports()
    assert report["fatal"]
    assert run.request.teacher.weights_sha256 in report["message"]
    assert all(run.cache.find_part(task.part) is None for task in run.tasks)


def test_a_fatal_error_is_raised_even_where_it_cannot_be_written_down(tmp_path):
    run = Run(tmp_path)
    checked = run.label_units
    run.cache.store.write("runs/r/errors", b"a file where the folder should be")
    other = run.request.model_copy(update={"teacher": run.request.teacher.model_copy(update={"precision": "bf16"})})
    checked._requests = {run.request.fingerprint(): other}
    with pytest.raises(MismatchError, match="precision 'fp32' \\(planned: 'bf16'\\)"):
        checked.setup()


def test_the_teacher_of_a_process_is_loaded_once_until_its_file_changes(tmp_path):
    checkpoint = tmp_path / "teacher.safetensors"
    save_teacher(checkpoint)
    config = config_of(experiment(cache=tmp_path, source=folder_source(tmp_path), teacher=timm_teacher(checkpoint))).teacher
    first = shared_teacher(config)
    assert shared_teacher(config) is first
    save_teacher(checkpoint, seed=1)
    assert shared_teacher(config).spec.weights_sha256 != first.spec.weights_sha256


def test_dead_letters_are_counted(tmp_path):
    pictures = write_folder(tmp_path / "pictures", per_class=4)
    (pictures / "red" / "001.png").write_bytes(plain(RAISE_COLOUR))
    (pictures / "red" / "002.png").write_bytes(b"no picture")
    run = Run(tmp_path, pictures=pictures)
    assert counters(run.start()) == {"units_committed": 3, "rows": 10, "dead_letters": 2}


def test_times_are_written_before_a_long_bundle_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(transforms, "_TIMES_AT_ONCE", 1)
    run = Run(tmp_path)
    run.start()
    files = [json.loads(run.cache.store.read(name)) for name in run.cache.store.names("runs/r/times")]
    assert sorted(entry["part"] for entries in files for entry in entries) == sorted(task.part.name for task in run.tasks)
    assert all(len(entries) == 1 for entries in files)


def test_a_worker_of_another_cache_leaves_nothing_there(tmp_path):
    run = Run(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(AnotherCacheError, match="is not the one of the process that submitted the job"):
        run.label_units.setup()
    assert list(tmp_path.rglob("setup-*")) == []
