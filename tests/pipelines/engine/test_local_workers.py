"""Workers on this machine import what this process imports, and do not die unnoticed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import apache_beam as beam
import pytest

from pipelines.engine import WorkerDiedError, make_pipeline, pipeline_options, run_pipeline, runs_in_this_process


@pytest.mark.parametrize(
    ("arguments", "workers", "here"),
    [
        ([], 1, True),
        ([], 2, False),
        (["--direct_num_workers=2"], 1, True),
        (["--direct_running_mode=multi_processing"], 1, False),
        (["--runner=PortableRunner", "--job_endpoint=embed"], 1, False),
    ],
)
def test_who_sees_this_process_memory(arguments, workers, here):
    assert runs_in_this_process(pipeline_options(arguments), workers=workers) == here


def write_pid(_, folder):
    Path(folder, str(os.getpid())).touch()
    return os.environ["PYTHONPATH"]


def keep_busy(_, folder):
    write_pid(_, folder)
    time.sleep(60)


@pytest.mark.integration
def test_workers_are_processes_that_import_what_this_one_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "users own code")])
    pipeline = make_pipeline(pipeline_options([]), workers=2)
    _ = (
        pipeline
        | beam.Create(range(8))
        | beam.Reshuffle()
        | beam.Map(write_pid, str(tmp_path))
        | beam.Map(lambda path, wanted: None if wanted in path.split(os.pathsep) else [].pop(), str(tmp_path / "users own code"))
    )
    run_pipeline(pipeline)
    pids = {int(file.name) for file in tmp_path.iterdir()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.integration
def test_a_killed_worker_ends_the_run_with_a_clear_word(tmp_path):
    pipeline = make_pipeline(pipeline_options([]), workers=2)
    _ = pipeline | beam.Create(range(8)) | beam.Reshuffle() | beam.Map(keep_busy, str(tmp_path))

    def kill_one():
        while not (found := list(tmp_path.iterdir())):
            time.sleep(0.05)
        os.kill(int(found[0].name), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    started = time.monotonic()
    with pytest.raises(
        WorkerDiedError, match=r"a worker process died \(Worker subprocess exited with return code -?\d+\).*--workers"
    ):
        run_pipeline(pipeline)
    killer.join()
    assert time.monotonic() - started < 30
