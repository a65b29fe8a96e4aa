"""What stands in the way, out of what processes say."""

from __future__ import annotations

import pytest

from pipelines.doctor.findings import Finding, gathered, worst
from pipelines.doctor.judge_machines import judge_devices, judge_disks, judge_memory, size_words
from pipelines.doctor.judge_reach import judge_cache, judge_source, judge_teacher
from pipelines.doctor.judge_versions import judge_versions
from pipelines.doctor.report import Device, Gpu, Reach
from tests.pipelines.doctor.specimens import GIB, heard, levels, machine, report, store


@pytest.mark.parametrize(
    "judge", [judge_versions, judge_devices, judge_memory, judge_disks, judge_cache, judge_source, judge_teacher]
)
def test_of_the_healthy_nothing_is_said_but_that_they_are(judge):
    for of_all in (heard(), heard(report(1)), heard(report(1), report(2), report(3, host="b", address="10.0.0.2"))):
        assert set(levels(judge(of_all))) <= {"ok"}


# Versions


@pytest.mark.parametrize(
    ("here", "there", "level"),
    [
        ({"python": "3.11.9"}, {"python": "3.11.4"}, "warning"),
        ({"python": "3.11.9"}, {"python": "3.12.1"}, "error"),
        ({"python": "3.1.9"}, {"python": "3.11.9"}, "error"),
        ({}, {"packages": {"decant": "0.2.0"}}, "error"),
        ({}, {"packages": {"decant": "0.2.0"}, "code": "another"}, "error"),
        ({}, {"code": "another"}, "warning"),
        ({}, {"packages": {"torch": "2.14.0"}}, "error"),
        ({"packages": {"torch": "2.15.0+cpu"}}, {"packages": {"torch": "2.15.0+cu132"}}, "ok"),
        ({"packages": {"torch": "2.15.0+cpu"}}, {"packages": {"torch": "2.15.1+cpu"}}, "error"),
    ],
)
def test_a_difference_that_can_change_labels_is_an_error(here, there, level):
    (found,) = judge_versions(heard(report(5, **there), here=report(host="submitter", **here)))
    assert found.level == level
    assert found.places == (() if level == "ok" else ("a:5",))


def test_what_is_missing_on_one_side_is_named_with_what_to_install_there():
    without = report(5).model_copy(update={"packages": {k: v for k, v in report().packages.items() if k != "timm"}})
    (found,) = judge_versions(heard(without))
    assert found.message == "timm is missing, and 1.0.31 where the command was started"
    assert "pip install 'timm==1.0.31' in the environment" in found.remedy
    (found,) = judge_versions(heard(report(5), here=without.model_copy(update={"host": "submitter"})))
    assert found.message == "timm 1.0.31, and missing where the command was started"
    assert found.remedy == "pip install 'timm==1.0.31' here"


def test_other_libraries_may_be_allowed_but_not_another_decant():
    workers = [report(5, packages={"torch": "2.14.0"}), report(6, packages={"decant": "0.2.0"})]
    found = {one.places[0]: one.level for one in judge_versions(heard(*workers, allow_version_differences=True))}
    assert found == {"a:5": "warning", "a:6": "error"}


def test_workers_of_this_machine_may_see_files_that_were_just_edited():
    assert levels(judge_versions(heard(report(5, code="newer"), local=True))) == ["ok"]


# Devices, memory, disks

GPU = Gpu(name="H200", total_bytes=140 * GIB, free_bytes=139 * GIB)


def with_gpu(pid, **changes):
    return report(pid, device=Device(torch_threads=8, gpus=(GPU,), asked="cuda", found="cuda:0"), **changes)


def test_a_device_that_is_missing_is_an_error_only_where_it_was_asked_for():
    asked = Device(asked="cuda", problem="teacher.device is cuda but torch sees no GPU")
    (found,) = judge_devices(heard(report(5, device=asked)))
    assert (found.level, found.places) == ("error", ("a:5",))
    (found,) = judge_devices(heard(report(5, device=Device(problem="torch cannot be imported: no"))))
    assert found.level == "warning"


def test_the_submitter_of_a_cluster_needs_no_device():
    here = report(host="submitter", device=Device(asked="cuda", problem="no GPU"))
    assert levels(judge_devices(heard(with_gpu(5), here=here))) == ["ok"]
    assert "error" in levels(judge_devices(heard(here=here)))


def test_processes_that_share_a_gpu_are_counted_by_host():
    found = judge_devices(heard(with_gpu(1), with_gpu(2), with_gpu(3, host="b")))
    (crowded,) = [one for one in found if one.level == "warning"]
    assert crowded.message == "2 processes of one host share cuda:0, each with a copy of the teacher"
    assert crowded.places == ("a",)


def test_a_gpu_that_lies_idle_is_mentioned():
    idle = report(5, device=Device(torch_threads=2, asked="auto", found="cpu", idle_gpu="this torch was built without CUDA"))
    assert levels(judge_devices(heard(idle))) == ["warning", "ok"]


def test_memory_is_shared_by_the_processes_of_a_host():
    small = machine(memory_available_bytes=5 * GIB)
    two, three = ([report(pid, machine=small) for pid in range(number)] for number in (2, 3))
    assert levels(judge_memory(heard(*two))) == ["ok"]
    (found,) = judge_memory(heard(*three))
    assert (found.level, found.places) == ("warning", ("a",))
    assert "5.0 GiB available for 3 processes" in found.message


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"temp_free_bytes": 900 << 20}, "warning"),
        ({"temp_free_bytes": 50 << 20}, "error"),
        ({"temp_problem": "Permission denied"}, "error"),
    ],
)
def test_a_full_temp_folder_is_found(changes, level):
    (found,) = judge_disks(heard(report(5, machine=machine(**changes))))
    assert found.level == level
    assert "TMPDIR" in found.remedy


def test_sizes_are_written_as_people_read_them():
    assert [size_words(size) for size in (None, 512, 3 << 20, 5 * GIB, 2048 * GIB)] == [
        "?",
        "0.5 KiB",
        "3.0 MiB",
        "5.0 GiB",
        "2.0 TiB",
    ]


# Reach


@pytest.mark.parametrize(
    ("changes", "level", "saying"),
    [
        ({"elsewhere": True, "read_seconds": None}, "error", "is another place there"),
        ({"read_problem": "no credentials", "read_seconds": None}, "error", "cannot be read: no credentials"),
        ({"write_problem": "Read-only file system"}, "error", "can be read but not written: Read-only file system"),
        ({"creates_at_once": False}, "warning", "cannot create a file only if there is none"),
        ({"read_seconds": 0.8}, "warning", "takes 0.8 s to read"),
        ({"read_seconds": 6.0}, "error", "takes 6.0 s to read"),
    ],
)
def test_a_cache_is_judged_by_what_each_process_can_do_with_it(changes, level, saying):
    found = gathered(judge_cache(heard(report(5, cache=store(**changes)), report(6))))
    assert found[0].level == level
    assert saying in found[0].message
    assert found[0].places == ("a:5",)
    assert found[0].remedy


def test_the_same_problem_of_many_is_one_finding():
    problem = Reach(problems=("/data/train does not exist there",))
    workers = [report(pid, source=problem) for pid in range(6)]
    (found,) = gathered(judge_source(heard(*workers)))
    assert len(found.places) == 6
    assert found.in_words().startswith("/data/train does not exist there (a:0, a:1, a:2, a:3 and 2 more). Use a path")


def test_what_is_downloaded_later_is_a_note():
    notes = Reach(notes=("org/model will be downloaded",))
    found = list(judge_teacher(heard(report(5, teacher=notes), here=report(host="submitter", teacher=notes))))
    assert {one.level for one in found} == {"ok"}
    assert gathered(found)[0].places == ("here", "a:5")


def test_hosts_of_one_name_are_told_apart_by_their_addresses():
    workers = [report(5), report(5, address="10.0.0.2")]
    of_all = heard(*workers)
    assert len(of_all.hosts) == 2
    assert [of_all.name(worker) for worker in workers] == ["a/10.0.0.1:5", "a/10.0.0.2:5"]


def test_errors_come_first_and_decide():
    findings = [
        Finding(level=level, topic="t", message=message) for level, message in (("ok", "1"), ("error", "2"), ("warning", "3"))
    ]
    assert [one.message for one in gathered(findings)] == ["2", "3", "1"]
    assert worst(findings) == "error"
    assert worst([]) == "ok"
