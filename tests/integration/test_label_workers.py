"""`decant label` with several workers, here and elsewhere: the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from tests.pipelines.support import (
    ROOT,
    colour_teacher,
    run_decant,
    snapshot,
    start_decant,
    timm_teacher,
)


@pytest.mark.integration
def test_two_workers_make_the_bytes_of_one(command, made, tmp_path):
    """In processes of their own, with the default number of torch threads: that differs between the two as well."""
    command("label", made("one", cache=tmp_path / "one", generation={"torch_threads": None}))
    config = made("two", cache=tmp_path / "two", generation={"torch_threads": None})
    status, out, err = run_decant("label", config, "--workers", "2", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["num_computed_rows"] == 48
    one, two = snapshot(tmp_path / "one"), snapshot(tmp_path / "two")
    assert one == two
    status, out, err = run_decant("label", config, cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "nothing to do" in out


@pytest.mark.integration
def test_two_runs_at_once_make_the_bytes_of_one(command, made, tmp_path):
    config = made(teacher=colour_teacher(seconds_per_batch=0.05), views=4)
    command("label", made("alone", cache=tmp_path / "alone", teacher=colour_teacher(seconds_per_batch=0.05), views=4))
    runs = [start_decant("label", config, "--json") for _ in range(2)]
    for run in runs:
        _, err = run.communicate(timeout=120)
        assert (run.returncode, err) == (0, "")
    assert snapshot(tmp_path / "cache") == snapshot(tmp_path / "alone")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def job_service(tmp_path):
    """Beam's job service and a pool of workers, each a server on this machine."""
    job_port, worker_port = free_port(), free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        # The pool starts workers as `python`.
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",
    }
    service = "apache_beam.runners.portability.local_job_service_main"
    pool = "apache_beam.runners.worker.worker_pool_main"
    commands = [
        [sys.executable, "-m", service, "-p", str(job_port), "--staging_dir", str(tmp_path / "staging")],
        [sys.executable, "-m", pool, "--service_port", str(worker_port)],
    ]
    processes = []
    with (tmp_path / "servers.log").open("w") as log:
        for words in commands:
            processes.append(
                subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
            )
    try:
        deadline = time.monotonic() + 60
        for port in (job_port, worker_port):
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert time.monotonic() < deadline, (tmp_path / "servers.log").read_text()
                time.sleep(0.1)
        yield [
            "--runner=PortableRunner",
            f"--job_endpoint=127.0.0.1:{job_port}",
            "--environment_type=EXTERNAL",
            f"--environment_config=127.0.0.1:{worker_port}",
        ]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=30)


@pytest.mark.integration
def test_a_job_service_with_remote_workers_makes_the_same_bytes(command, made, tmp_path, job_service):
    """What runs on a cluster: a pickled pipeline, submitted over the network, in workers that were started apart."""
    command("label", made("here", cache=tmp_path / "here"))
    status, out, err = run_decant("label", made(), *job_service, "--json")
    assert status == 0, err
    assert json.loads(out)["num_computed_rows"] == 48
    assert snapshot(tmp_path / "cache") == snapshot(tmp_path / "here")


@pytest.mark.integration
def test_an_error_in_a_remote_worker_comes_back(command, made, tmp_path, job_service, checkpoint):
    moved = shutil.copy(checkpoint, tmp_path / "teacher.safetensors")
    config = made(teacher=timm_teacher(moved))
    command("plan", config)
    os.unlink(moved)  # noqa: PTH108
    shutil.copy(checkpoint, tmp_path / "kept.safetensors")
    status, _, err = run_decant("label", config, *job_service)
    assert status == 1
    assert "teacher.safetensors does not exist" in err
