"""What a job brings is all that a Python without Decant lacks; nothing is downloaded for it."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster import shipping as module
from cluster.assembly import Shape, bring_up, submission_arguments
from cluster.errors import ClusterError
from cluster.processes import Processes
from cluster.shipping import (
    CODES,
    SETUP_FILE,
    WHEEL,
    entry_point,
    has_decant,
    option_that_ships,
    python_without_decant,
    shipped_environment,
    start_script,
    write_start_script,
)

IN_A_WORKER = "import decant, torch, pipelines.transforms; from importlib.metadata import version; print(version('decant'))"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host") / "python"
    python_without_decant(folder)
    return folder


def run(python, *words):
    """As a pool's workers run it."""
    environment = {**os.environ, **shipped_environment(python)}
    return subprocess.run(
        ["python", "-P", *map(str, words)], env=environment, cwd=python, capture_output=True, text=True, check=False
    )


def test_a_job_brings_what_is_missing(tmp_path, python):
    assert not has_decant(python)
    before = run(python, "-c", IN_A_WORKER)
    assert "No module named 'decant'" in before.stderr
    option, _, wheel = option_that_ships(WHEEL, folder=tmp_path / "shipped").partition("=")
    assert option == "--extra_package"
    # What Beam's entry point says to pip of an extra package.
    for words in (["--upgrade", "--force-reinstall", "--no-deps", wheel], [wheel]):
        installed = run(python, "-m", "pip", "install", "--disable-pip-version-check", *words)
        assert installed.returncode == 0, installed.stderr
    assert has_decant(python)
    after = run(python, "-c", IN_A_WORKER)
    assert after.stdout.strip() == importlib.metadata.version("decant"), after.stderr


def test_a_wheel_has_what_is_installed_and_no_more(tmp_path):
    wheel = option_that_ships(WHEEL, folder=tmp_path / "shipped").partition("=")[2]
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in tops if ".dist-info" not in name} == {"decant.py", "pipelines", "storage", "student_training"}


def test_a_source_tree_is_a_copy(tmp_path):
    option, _, setup = option_that_ships(SETUP_FILE, folder=tmp_path / "shipped").partition("=")
    assert option == "--setup_file"
    assert setup == str(tmp_path / "shipped" / "tree" / "setup.py")
    assert Path(setup).exists()


def test_a_python_that_finds_decant_all_the_same_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FIND_DECANT", "print('storage')")
    with pytest.raises(ClusterError, match="is to have no Decant, and finds storage"):
        python_without_decant(tmp_path / "python")


def test_workers_are_started_by_beams_entry_point_with_a_place_of_the_hosts_own(tmp_path, python):
    program = tmp_path / "an entry point"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    write_start_script(python, program=program, scratch=tmp_path / "its own")
    said = subprocess.run([start_script(python), "--id=1-1"], capture_output=True, text=True, check=True).stdout
    assert said == f"--id=1-1 --semi_persist_dir={tmp_path}/its own\n"


def test_without_go_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="go is not on the PATH; install Go, or leave out --code"):
        entry_point(tmp_path / "downloads")


@pytest.mark.parametrize("code", CODES[1:])
def test_two_workers_of_a_host_would_install_into_one_environment(tmp_path, monkeypatch, code):
    (tmp_path / "java").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    shape = Shape(workers_per_host=2, code=code)
    with pytest.raises(ClusterError, match=f"--code {code}: .*leave out --workers-per-host"):
        bring_up(tmp_path / "up", shape=shape, downloads=tmp_path, say=print)


def test_jobs_are_submitted_with_what_they_bring(tmp_path):
    processes = Processes.create(tmp_path)
    processes.facts = {
        "flink": "http://127.0.0.1:9",
        "pool": "localhost:50000",
        "jar": "/a.jar",
        "hosts": "2",
        "workers_per_host": "1",
        "shipped": "--extra_package=/a folder/decant-0.1.0-py3-none-any.whl",
    }
    assert submission_arguments(processes, through_job_server=False)[-1] == processes.facts["shipped"]
    del processes.facts["shipped"]
    assert submission_arguments(processes, through_job_server=False)[-1] == "--sdk_worker_parallelism=1"
