"""Killed at any instant, a run loses nothing, shows nothing half, and goes on to the same bytes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import random
import re
import signal
import struct
import termios
import time

import psutil
import pytest

from storage.cache import Cache
from storage.label_set import LabelSet
from storage.parts import PartRecord
from tests.pipelines.support import colour_teacher, experiment, folder_source, snapshot, start_decant, write_config

pytestmark = pytest.mark.integration

NUM_PARTS = 12


def slow_experiment(cache, pictures):
    """12 parts of about 0.1 s each."""
    return experiment(
        cache=cache,
        source=folder_source(pictures, unit_size=4),
        teacher=colour_teacher(seconds_per_batch=0.05),
        views=4,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, pictures):
    """The files of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start_decant("label", write_config(folder / "config.json", slow_experiment(folder / "cache", pictures)))
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    files = snapshot(folder / "cache")
    assert len([name for name in files if name.endswith(".tar")]) == NUM_PARTS
    return files


@pytest.fixture
def config(tmp_path, pictures):
    return write_config(tmp_path / "config.json", slow_experiment(tmp_path / "cache", pictures))


@pytest.fixture
def finish(command, config, tmp_path, uninterrupted):
    """Run the same command again and compare with a run that nobody disturbed."""

    def run_again(*words):
        shown = check_nothing_is_half_done(tmp_path / "cache")
        report = command("label", config, "--json", *words).json
        assert report["num_computed_rows"] == 96 - 8 * shown
        assert snapshot(tmp_path / "cache") == uninterrupted
        assert command("cache", "verify", tmp_path / "cache").status == 0

    return run_again


def records(cache):
    return sorted((cache / "requests").glob("*/*.v*.json"))


def check_nothing_is_half_done(cache):
    """Whatever a reader would trust is whole; return the number of parts that count."""
    found = records(cache)
    for file in found:
        record = PartRecord.from_bytes(file.read_bytes(), origin=str(file))
        assert hashlib.sha256((file.parent / record.tar_name).read_bytes()).hexdigest() == record.tar_sha256
    opened = Cache.at(str(cache))
    for name in [*opened.label_set_ids(), *opened.names()]:
        LabelSet.open(opened, name_or_id=name)
    return len(found)


def wait_for_records(process, cache, *, at_least):
    deadline = time.monotonic() + 90
    while len(records(cache)) < at_least:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def worker_processes(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "pipelines.local_worker" in child.cmdline()]


def wait_until_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_killed_run_goes_on_to_the_same_bytes(config, finish, tmp_path, seed):
    chance = random.Random(seed)
    for _ in range(2):
        process = start_decant("label", config)
        wait_for_records(process, tmp_path / "cache", at_least=chance.randint(0, NUM_PARTS // 2))
        time.sleep(chance.random() * 0.3)
        process.kill()
        process.communicate()
    finish()


def test_a_run_killed_at_its_start_goes_on(config, finish, tmp_path):
    process = start_decant("label", config)
    while not (tmp_path / "cache" / "sources").is_dir():
        time.sleep(0.001)
    process.kill()
    process.communicate()
    finish()


def test_workers_die_with_a_killed_run(config, finish, tmp_path):
    process = start_decant("label", config, "--workers", "2")
    wait_for_records(process, tmp_path / "cache", at_least=2)
    workers = worker_processes(process)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    wait_until_gone(workers)
    finish("--workers", "2")


@pytest.mark.parametrize("seed", [4, 5])
def test_a_killed_worker_ends_the_run_soon_with_a_clear_word(config, finish, tmp_path, seed):
    chance = random.Random(seed)
    process = start_decant("label", config, "--workers", "2")
    wait_for_records(process, tmp_path / "cache", at_least=chance.randint(1, NUM_PARTS // 2))
    time.sleep(chance.random() * 0.2)
    workers = worker_processes(process)
    started = time.monotonic()
    chance.choice(workers).kill()
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - started < 30
    assert process.returncode == 1
    assert errors.startswith("decant: a worker process died (Worker subprocess exited with return code")
    assert "lower --workers or generation.batch_size" in errors
    assert "run the same command again to go on" in errors
    assert errors.count("\n") == 1
    assert "labelled in" not in output
    wait_until_gone(workers)
    finish()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_the_run_with_status_130_and_a_word(config, finish, tmp_path, workers):
    """As a terminal sends it: to every process of the group."""
    process = start_decant("label", config, "--workers", str(workers), "--json")
    wait_for_records(process, tmp_path / "cache", at_least=2)
    started_workers = worker_processes(process)
    assert len(started_workers) == (2 if workers == 2 else 0)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "decant: interrupted; what was committed is whole: run the same command again to go on\n"
    assert json.loads(output)["status"] == 130
    wait_until_gone(started_workers)
    finish()


def test_a_run_in_the_background_of_a_shell_ignores_interrupts_and_still_sees_its_workers_die(config, tmp_path):
    """Shells start background commands with interrupts ignored."""
    process = start_decant(
        "label", config, "--workers", "2", before="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    )
    wait_for_records(process, tmp_path / "cache", at_least=1)
    process.send_signal(signal.SIGINT)
    workers = worker_processes(process)
    time.sleep(0.1)
    assert process.poll() is None
    workers[0].kill()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.startswith("decant: a worker process died")


def test_a_terminal_shows_rows_as_they_are_committed_and_takes_an_interrupt(config, tmp_path):
    """On a terminal of its own, where the interrupt is typed."""
    terminal, other_end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = start_decant(
        *("label", config, "--set", "teacher.kwargs.seconds_per_batch=0.3"),
        before="import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)",
        **dict.fromkeys(("stdin", "stdout", "stderr"), other_end),
    )
    os.close(other_end)
    shown, typed = b"", False
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:
            break
        shown += data
        if not typed and re.search(rb"label: .*\| (8|16|24|32|40)/96 \[.*row/s\]", shown):
            os.write(terminal, b"\x03")
            typed = True
    os.close(terminal)
    assert process.wait(timeout=30) == 130
    assert b"decant: interrupted; what was committed is whole: run the same command again to go on" in shown
    assert b"Traceback" not in shown
    check_nothing_is_half_done(tmp_path / "cache")
