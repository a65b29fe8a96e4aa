"""What a process says of its machine, from files as Linux writes them."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from pipelines.doctor.bounded import NoAnswerError, answer_within
from pipelines.doctor.device import examine_device
from pipelines.doctor.machine import code_digest, examine_machine, installed_packages

KIB, GIB = 1 << 10, 1 << 30


@pytest.fixture
def system(tmp_path):
    """Write files of a system's root folder."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    write(
        proc__meminfo=f"MemTotal: {16 * GIB // KIB} kB\nMemFree: 1 kB\nMemAvailable: {12 * GIB // KIB} kB\nHugePages_Total: 0\n"
    )
    return write


def test_a_machine_without_limits_has_all_its_memory(system):
    found = examine_machine(root=system())
    assert (found.memory_bytes, found.memory_available_bytes) == (16 * GIB, 12 * GIB)
    assert found.cpu_threads == len(os.sched_getaffinity(0))
    assert found.temp_problem is None
    assert found.temp_free_bytes > 0


def test_a_container_has_what_its_limit_leaves(system):
    root = system(
        **{
            "sys__fs__cgroup__memory.max": f"{4 * GIB}\n",
            "sys__fs__cgroup__memory.current": f"{3 * GIB}\n",
            # What the kernel keeps of files it gives back when asked.
            "sys__fs__cgroup__memory.stat": f"anon 1\ninactive_file {GIB}\n",
            "sys__fs__cgroup__cpu.max": "50000 100000\n",
        }
    )
    found = examine_machine(root=root)
    assert (found.memory_bytes, found.memory_available_bytes) == (4 * GIB, 2 * GIB)
    assert found.cpu_threads == 1


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_a_limit_that_is_none_is_no_limit(system, limit):
    version = "sys__fs__cgroup__memory.max" if limit == "max" else "sys__fs__cgroup__memory__memory.limit_in_bytes"
    found = examine_machine(root=system(**{version: limit, "sys__fs__cgroup__cpu.max": "max 100000"}))
    assert (found.memory_bytes, found.memory_available_bytes) == (16 * GIB, 12 * GIB)


def test_the_first_version_of_control_groups_is_read_too(system):
    root = system(
        **{
            "sys__fs__cgroup__memory__memory.limit_in_bytes": str(2 * GIB),
            "sys__fs__cgroup__memory__memory.usage_in_bytes": str(GIB),
            "sys__fs__cgroup__memory__memory.stat": f"total_inactive_file {GIB // 2}\n",
        }
    )
    assert examine_machine(root=root).memory_available_bytes == GIB + GIB // 2


def test_a_temp_folder_that_is_not_there_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert examine_machine().temp_problem == "No such file or directory"


def test_the_code_of_this_decant_has_one_digest():
    assert code_digest() == code_digest()
    assert len(code_digest()) == 16
    assert {"decant", "torch", "numpy", "apache-beam"} <= installed_packages().keys()


def test_the_device_of_a_config_is_tried():
    found = examine_device("cpu")
    assert (found.found, found.problem, found.asked) == ("cpu", None, "cpu")
    assert found.torch_threads >= 1
    missing = examine_device("cuda:99")
    assert "teacher.device is cuda:99 but" in missing.problem
    assert examine_device(None).problem is None


def test_a_process_without_torch_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = examine_device("cpu")
    assert "torch cannot be imported" in found.problem
    assert found.torch_threads is None


def test_an_answer_is_waited_for_only_for_so_long():
    assert answer_within(5, lambda: 7) == 7
    with pytest.raises(KeyError):
        answer_within(5, {}.popitem)
    never = threading.Event()
    started = time.monotonic()
    with pytest.raises(NoAnswerError, match="no answer within 0 s"):
        answer_within(0.05, never.wait)
    assert time.monotonic() - started < 2
    never.set()
