"""Beam's options pass through, its traps do not."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PortableOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.runner import (
    WorkerDiedError,
    failure_of,
    make_pipeline,
    pipeline_options,
    run_pipeline,
    runs_in_this_process,
)
from storage.errors import CacheError, ConfigError, DecantError


@pytest.fixture(autouse=True)
def _quiet_beam():
    """Beam logs every failure of a worker with its traceback."""
    logger = logging.getLogger("apache_beam")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@pytest.mark.parametrize("arguments", [[], ["--runner=DirectRunner"], ["--runner", "direct"], ["--runner=SwitchingDirectRunner"]])
def test_the_local_runner_is_named_so_that_beam_downloads_nothing(arguments):
    options = pipeline_options(arguments)
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    assert isinstance(make_pipeline(options, workers=1).runner, FnApiRunner)


@pytest.fixture
def listening():
    """The endpoint of something that answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_the_users_own_options_reach_beam(listening):
    arguments = ["--runner=PortableRunner", "--job_endpoint", listening, "--environment_type=EXTERNAL", "--direct_num_workers=3"]
    options = pipeline_options(arguments)
    assert options.view_as(StandardOptions).runner == "PortableRunner"
    assert options.view_as(PortableOptions).job_endpoint == listening
    assert options.view_as(PortableOptions).environment_type == "EXTERNAL"
    assert options.view_as(DirectOptions).direct_num_workers == 3


def test_a_job_service_that_does_not_answer_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"--job_endpoint 127.0.0.1:9: no job service answers there .*Connection refused"):
        pipeline_options(["--runner=PortableRunner", "--job_endpoint=127.0.0.1:9"])
    pipeline_options(["--runner=PortableRunner", "--job_endpoint=embed"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no_such_option=3"], "neither decant nor Beam knows --no_such_option"),
        (["--no_such_flag", "--nor_this", "1"], "neither decant nor Beam knows --no_such_flag, --nor_this"),
        (["extra"], "'extra' is neither an option nor the value of one"),
        (["--runner=FnApiRunner", "extra"], "'extra' is neither an option nor the value of one"),
        (["--runner", "FnApiRunner", "extra"], "'extra' is neither an option nor the value of one"),
        (["-x", "3"], "'-x' is neither an option nor the value of one"),
        (["--direct_num_workers=many"], "Beam cannot read --direct_num_workers=many: .*invalid int value: 'many'"),
        (["--direct_num_workers"], "expected one argument"),
        (["--runner=NoSuchRunner"], "--runner NoSuchRunner: there is no such runner here"),
        (["--runner=no.such.module.Runner"], "there is no such runner here .*No module named 'no'"),
    ],
)
def test_arguments_that_nobody_knows_are_refused_before_work_starts(arguments, message, capfd):
    with pytest.raises(ConfigError, match=message):
        pipeline_options(arguments)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["DaskRunner", "dask", "apache_beam.runners.dask.dask_runner.DaskRunner"])
def test_dask_is_refused_with_the_reason_and_a_way_out(name):
    with pytest.raises(ConfigError, match="refused, it drops elements of ordinary pipelines without an error. Use FnApiRunner"):
        pipeline_options([f"--runner={name}"])


@pytest.mark.parametrize(
    ("arguments", "workers", "here"),
    [
        ([], 1, True),
        ([], 2, False),
        (["--direct_num_workers=2"], 1, True),
        (["--direct_running_mode=multi_processing"], 1, False),
        (["--runner=PortableRunner"], 1, False),
    ],
)
def test_who_sees_this_process_memory(arguments, workers, here):
    assert runs_in_this_process(pipeline_options(arguments), workers=workers) == here


def failing(_):
    raise CacheError("the store is full: no space\nleft; make room")


def test_an_error_in_a_worker_is_raised_and_can_be_told_in_a_line():
    pipeline = make_pipeline(pipeline_options([]), workers=1)
    _ = pipeline | beam.Create([1]) | "Fail" >> beam.Map(failing)
    with pytest.raises(CacheError) as caught:
        run_pipeline(pipeline)
    told = failure_of(caught.value)
    assert type(told) is CacheError
    assert str(told) == "the store is full: no space\nleft; make room"


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            "Traceback (most recent call last):\n  File x\nstorage.errors.CacheError: no space; make room [while running 'A/B']\n",
            CacheError,
            "no space; make room",
        ),
        (
            "Traceback\nKeyError: 'a'\n\nDuring handling\n\nValueError: two\nlines\n",
            DecantError,
            "the pipeline failed: ValueError: two\nlines",
        ),
        ("connection refused", DecantError, "the pipeline failed: connection refused"),
        ("", DecantError, "the pipeline failed: RuntimeError('')"),
    ],
)
def test_beams_tracebacks_are_cut_to_what_went_wrong(text, kind, message):
    told = failure_of(RuntimeError(text))
    assert type(told) is kind
    assert str(told) == message


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
