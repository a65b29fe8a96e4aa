"""Runs that are followed from elsewhere, and runs that go on without the command that started them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
import time

import psutil
import pytest

from pipelines.engine import pipeline_options
from pipelines.label import plan_run, run_label, submit_labels
from storage.config import load_config
from storage.errors import SourceError
from storage.label_runs import state
from storage.upkeep.garbage import collect_garbage
from tests.integration.portable import job_service, portable_options, worker_pool
from tests.integration.support import refuse
from tests.pipelines.support import colour_teacher, folder_source, run_decant, snapshot, start_decant

pytestmark = pytest.mark.integration

NUM_PARTS = 12


@pytest.fixture
def slow(made, pictures):
    """A config of 12 parts; `seconds` is what each takes."""

    def make(seconds, file="config", **changes):
        teacher = colour_teacher(seconds_per_batch=seconds / 2)
        return made(file, **{"source": folder_source(pictures, unit_size=4), "teacher": teacher, "views": 4, **changes})

    return make


@pytest.fixture(scope="module")
def pool_port(tmp_path_factory):
    with worker_pool(tmp_path_factory.mktemp("pool")) as pool:
        yield pool


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, pool_port):
    """Options of a job service and a pool of workers on this machine."""
    with job_service(tmp_path_factory.mktemp("service")) as service:
        yield portable_options(service, pool_port)


def records(cache):
    return sorted((cache / "requests").glob("*/*.v*.json"))


class Pause:
    """Stops processes as soon as a cache holds some parts, so that a test on a busy machine meets the run half way."""

    def __init__(self, cache, *, processes, at_least):
        self._stopped = []
        self._thread = threading.Thread(target=self._stop, args=(cache, processes, at_least))
        self._thread.start()

    def _stop(self, cache, processes, at_least):
        deadline = time.monotonic() + 120
        while len(records(cache)) < at_least and time.monotonic() < deadline:
            time.sleep(0.01)
        self._stopped = processes()
        for process in self._stopped:
            process.suspend()

    def wait(self):
        self._thread.join()

    def end(self):
        self._thread.join()
        for process in self._stopped:
            process.resume()


def tree(pid):
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def pool_tree(port):
    """A pool of workers that listens at a port, with its workers."""
    (pool,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if {"apache_beam.runners.worker.worker_pool_main", str(port)} <= set(process.info["cmdline"] or [])
    )
    return tree(pool.pid)


def test_a_run_is_followed_from_other_processes_and_goes_on_when_one_of_them_is_interrupted(slow, tmp_path):
    cache = tmp_path / "cache"
    run = start_decant("label", slow(0.3), "--workers", "2", "--progress-seconds", "0.3")
    pause = Pause(cache, processes=lambda: tree(run.pid), at_least=1)
    pause.wait()
    watchers = [start_decant("cache", "watch", str(cache), *words, "--progress-seconds", "0.1") for words in ([], ["tiny"])]
    first = [watcher.stderr.readline() for watcher in watchers]
    assert all(re.match(r"tiny: \d+ of 96 rows .*, 2 workers\n", line) for line in first), first
    watchers[0].send_signal(signal.SIGINT)
    _, errors = watchers[0].communicate(timeout=60)
    assert watchers[0].returncode == 130
    assert "decant: no longer watching; run " in errors
    assert "Traceback" not in errors
    pause.end()
    out, err = watchers[1].communicate(timeout=120)
    assert watchers[1].returncode == 0, err
    assert "96 of 96 rows (100.0%) in 12 of 12 parts" in out
    counts = [int(line.split()[1]) for line in err.splitlines()]
    assert counts == sorted(counts)
    _, lines = run.communicate(timeout=120)
    assert run.returncode == 0
    assert all(line.startswith("tiny: ") for line in lines.splitlines())
    assert lines.count("\n") >= 2


def test_a_killed_run_falls_silent_and_says_how_to_go_on(command, slow, tmp_path, monkeypatch):
    config = slow(0.5)
    run = start_decant("label", config)
    Pause(tmp_path / "cache", processes=lambda: tree(run.pid), at_least=1).wait()
    run.kill()
    run.communicate()
    monkeypatch.setattr(state, "SILENT_SECONDS", 0.5)
    ended = command("cache", "watch", tmp_path / "cache", "--patience-minutes", "0.01")
    assert ended.status == 1
    assert re.search(r"no worker was heard of for 0\d:\d\d; it was killed", ended.out)
    assert f"decant label {config}" in ended.out


def change_a_unit(folder):
    """What was planned is no longer what a worker finds."""
    sorted(folder.rglob("*.png"))[0].unlink()


def test_failed_units_end_the_watching_with_what_workers_said(command, slow, tmp_path, pictures):
    own = shutil.copytree(pictures, tmp_path / "own")
    run = plan_run(load_config(slow(0.0, source=folder_source(own, unit_size=4))), progress=False)
    change_a_unit(own)
    with pytest.raises(SourceError) as caught:
        run_label(run, progress=False)
    ended = command("cache", "watch", tmp_path / "cache", "--json")
    assert (ended.status, ended.json["state"], ended.json["num_failed_parts"]) == (1, "failed", 2)
    assert all(problem in str(caught.value) for problem in ended.json["problems"])
    assert ended.json["num_done_parts"] == NUM_PARTS - 2


def test_a_detached_run_goes_on_alone_is_safe_from_gc_and_is_committed_by_the_same_command(
    command, slow, tmp_path, cluster, pool_port
):
    cache = tmp_path / "cache"
    config = slow(0.3)
    pause = Pause(cache, processes=lambda: pool_tree(pool_port), at_least=2)
    status, out, err = run_decant("label", config, *cluster, "--detach", "--json")
    assert status == 0, err
    submitted = json.loads(out)
    assert (submitted["num_parts"], submitted["num_rows"], submitted["next"]) == (NUM_PARTS, 96, f"decant label {config}")
    pause.wait()
    assert 2 <= len(records(cache)) < NUM_PARTS
    # The same again, while it goes on.
    who = f"run {submitted['run']} (PortableRunner, started "
    refuse(
        command("label", config),
        status=1,
        saying=[who, "computes ", " parts that are missing", submitted["watch"], "--anyway"],
    )
    # Nobody but the run itself knows of its parts.
    found = collect_garbage(str(cache), delete=True, grace_hours=0, untagged_days=0)
    assert (found["num_files"], found["num_held_runs"]) == (0, 1)
    assert found["num_held_files"] > 4
    standing = command("cache", "watch", cache, "--once", "--json").json
    assert (standing["state"], standing["run"]) == ("running", submitted["run"])
    pause.end()
    status, out, err = run_decant("cache", "watch", str(cache))
    assert status == 0, err
    assert f"next: decant label {config}\n  commits the label set" in out
    report = command("label", config, "--json").json
    assert report["num_computed_rows"] == 0
    assert command("cache", "watch", cache, "--json").json["label_sets"][0]["committed"]
    assert list((cache / "runs" / "holds").iterdir()) == []
    assert command("label", slow(0.3, file="here", cache=tmp_path / "here")).status == 0
    assert snapshot(cache) == snapshot(tmp_path / "here")


def test_a_detached_run_that_fails_says_why(command, slow, tmp_path, pictures, cluster):
    own = shutil.copytree(pictures, tmp_path / "own")
    run = plan_run(load_config(slow(0.0, source=folder_source(own, unit_size=4))), progress=False)
    change_a_unit(own)
    submitted = submit_labels([run], options=pipeline_options(cluster), command="decant label it.yaml")
    ended = command("cache", "watch", tmp_path / "cache", submitted.run)
    assert ended.status == 1
    assert "it failed: 2 parts are missing; what is there stays" in ended.out
    assert "next: mend that, then: decant label it.yaml" in ended.out


def test_a_run_that_would_end_with_the_command_is_not_detached(command, slow, tmp_path):
    refuse(
        command("label", slow(0.0), "--detach"),
        status=2,
        saying=["--detach: --runner FnApiRunner computes in this command", "leave --detach out"],
    )
    assert not (tmp_path / "cache" / "runs").exists()


def test_where_nothing_is_missing_detaching_commits(command, slow, cluster):
    config = slow(0.0)
    assert command("label", config).status == 0
    ended = command("label", config, *cluster, "--detach", "--json")
    assert (ended.status, ended.json["num_computed_rows"]) == (0, 0)


@pytest.mark.s3
def test_a_run_on_s3_is_followed(command, slow, s3_bucket):
    url = f"s3://{s3_bucket}/watched"
    assert command("label", slow(0.0, cache=url)).status == 0
    ended = command("cache", "watch", url, "--json")
    assert (ended.status, ended.json["state"], ended.json["num_done_parts"]) == (0, "done", NUM_PARTS)
    assert len(command("cache", "watch", url, "--list", "--json").json["runs"]) == 1
    refuse(command("cache", "watch", url, "2020"), status=1, saying=["has no run '2020'", "--list"])
