"""`decant doctor`: workers here and elsewhere, healthy ones and ones that are ill in the ways that clusters know."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.portable import job_service, portable_options, worker_environment, worker_pool
from tests.pipelines.support import ROOT, colour_teacher, folder_source, run_decant

BROKEN_STORE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Port of Beam's job service."""
    with job_service(tmp_path_factory.mktemp("service")) as port:
        yield port


def found(ended, *, topic, level="error"):
    """Findings of a topic, by their messages."""
    return {one["message"]: one for one in ended.json["findings"] if one["topic"] == topic and one["level"] == level}


def one_of(ended, *, topic, level="error", saying):
    """The only finding of a topic whose message has some words."""
    (finding,) = [one for message, one in found(ended, topic=topic, level=level).items() if saying in message]
    return finding


def leaves_nothing(cache):
    """Whether a cache holds no file: what was written to it for the doctor is gone."""
    return not [path for path in Path(cache).rglob("*") if path.is_file()]


# This machine


def test_without_a_config_this_machine_and_the_local_runner_are_looked_at(command):
    ended = command("doctor")
    assert ended.status == 0, ended.err
    assert "met 1 worker process on 1 host" in ended.out
    assert ended.out.endswith(("nothing in the way\n", "to look at\n"))
    for package in ("python", "decant", "torch", "transformers", "apache-beam"):
        assert package in ended.out


def test_a_config_says_what_must_be_reached(command, made, tmp_path):
    ended = command("doctor", made(), "--json", "--elements", 3)
    assert ended.status == 0, ended.err
    assert ended.json["problems"] == []
    (worker,) = ended.json["workers"]
    assert worker["elements"] == [0, 1, 2]
    assert worker["pid"] == os.getpid()
    assert worker["cache"]["creates_at_once"] is True
    assert 0 < worker["cache"]["read_seconds"] < worker["cache"]["write_seconds"] + 1
    assert (worker["source"]["num_read"], worker["teacher"]["num_read"]) == (2, 1)
    assert worker["device"]["found"] == "cpu"
    assert leaves_nothing(tmp_path / "cache")


@pytest.mark.integration
def test_two_local_workers_are_met_and_compared(made_by_colour, tmp_path):
    status, out, err = run_decant("doctor", made_by_colour(), "--workers", "2", "--json")
    assert status == 0, (out, err)
    found = json.loads(out)
    assert found["num_processes"] == 2
    assert sorted(number for worker in found["workers"] for number in worker["elements"]) == list(range(8))
    assert all(worker["elements"] for worker in found["workers"])
    assert len({worker["pid"] for worker in found["workers"]} | {found["here"]["pid"]}) == 3
    assert leaves_nothing(tmp_path / "cache")


def test_what_is_wrong_here_is_found_with_its_remedy(command, made, tmp_path):
    config = made(
        source=folder_source(tmp_path / "nowhere"),
        teacher={"kind": "timm", "name": "test_vit", "checkpoint": str(tmp_path / "none.safetensors"), "device": "cuda:7"},
    )
    ended = command("doctor", config, "--json")
    assert ended.status == 1
    assert "nowhere" in one_of(ended, topic="source", saying="cannot be listed")["message"]
    assert "none.safetensors" in one_of(ended, topic="teacher", saying="does not exist")["message"]
    text = command("doctor", config).out
    assert "ERROR   source" in text
    assert "in the way of labelling" in text


def test_a_device_that_is_missing_stops_a_run_before_its_work(command, made, tmp_path):
    config = made(teacher=colour_teacher() | {"device": "mps"})
    ended = command("label", config, "--preflight")
    assert ended.status == 1
    assert "nothing was labelled" in ended.err
    assert "device: teacher.device is mps but" in ended.err
    assert leaves_nothing(tmp_path / "cache")


def test_a_run_that_passes_preflight_labels(command, made):
    ended = command("label", made(), "--preflight")
    assert ended.status == 0
    assert "preflight: met 1 worker process on 1 host" in ended.out
    assert command("label", made(), "--preflight").out.count("nothing to do") == 1


def test_a_cache_that_cannot_be_written_is_found(command, made, tmp_path):
    (tmp_path / "file").write_text("in the way")
    ended = command("doctor", made(cache=tmp_path / "file" / "cache"), "--json")
    assert ended.status == 1
    assert one_of(ended, topic="cache", saying="cannot write")["places"] == ["here"]
    # The job itself went through, and its reports were heard.
    assert ended.json["num_processes"] == 1


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (["no.yaml"], "there is no such config file"),
        (["--set", "name=x"], "there is no config whose key this is"),
        (["--elements", "0"], "--elements 0: nothing can be examined so"),
        (["--runner=NoSuchRunner"], "there is no such runner here"),
        (["--runner", "FnApiRunner", "late.yaml"], "'late.yaml' is neither an option nor the value of one"),
    ],
)
def test_wrong_usage_ends_with_status_2(command, words, saying):
    ended = command("doctor", *words)
    assert ended.status == 2
    assert saying in ended.err


def test_the_machine_is_looked_at_where_beam_is_missing(made_by_colour):
    code = "import sys; sys.modules['apache_beam'] = None; import decant; sys.exit(decant.main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*words):
        command = [os.sys.executable, "-c", code, "doctor", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    done = run(made_by_colour())
    assert done.returncode == 1
    assert "ERROR   packages  extra label is not whole (decant label, plan, audit and repair): apache_beam missing" in done.stdout
    assert "pip install 'decant[label]'" in done.stdout
    assert "first samples of 2 of its units" in done.stdout
    done = run("--runner=FlinkRunner")
    assert done.returncode == 1
    assert "pip install 'decant[label]'" in done.stderr


# Workers elsewhere


@pytest.mark.integration
def test_healthy_workers_elsewhere(command, made_by_colour, tmp_path, service):
    with worker_pool(tmp_path) as pool:
        ended = command("doctor", made_by_colour(), *portable_options(service, pool), "--json", "--elements", 5)
    # Where the tree is edited while this runs, workers rightly have other code.
    assert ended.status == 0, ended.json["findings"]
    (worker,) = ended.json["workers"]
    assert worker["pid"] != os.getpid()
    assert worker["elements"] == [0, 1, 2, 3, 4]
    assert worker["clock_ahead_seconds"]["least"] < 0 < worker["clock_ahead_seconds"]["most"]
    assert worker["clock_ahead_seconds"]["most"] - worker["clock_ahead_seconds"]["least"] < 1
    assert ended.json["engine"]["environment"] == "EXTERNAL"
    assert leaves_nothing(tmp_path / "cache")


@pytest.mark.integration
def test_other_versions_are_found_also_without_a_store(command, tmp_path, service):
    """What workers say comes back in the error with which the job ends."""
    for name, version in (("decant", "9.9.9"), ("timm", "0.0.1")):
        information = tmp_path / "other" / f"{name}-{version}.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    with worker_pool(tmp_path, env=worker_environment(path=(tmp_path / "other", ROOT))) as pool:
        ended = command("doctor", *portable_options(service, pool), "--json", "--elements", 2)
    assert ended.status == 1
    (worker,) = ended.json["workers"]
    finding = one_of(ended, topic="versions", saying="decant 9.9.9, and")
    assert finding["places"] == [worker["name"]]
    assert "--setup_file ./setup.py" in finding["remedy"]
    assert "pip install 'timm==" in one_of(ended, topic="versions", saying="timm 0.0.1, and")["remedy"]
    assert not found(ended, topic="engine")
    assert ended.json["versions"]["timm"]["workers"] == {"0.0.1": 1}


@pytest.mark.integration
@pytest.mark.s3
def test_a_worker_that_cannot_reach_the_store_is_heard(command, made_by_colour, tmp_path, service, s3_bucket):
    config = made_by_colour(cache=f"s3://{s3_bucket}/doctor")
    with worker_pool(tmp_path, env=worker_environment(**BROKEN_STORE)) as pool:
        ended = command("doctor", config, *portable_options(service, pool), "--json", "--elements", 2)
    assert ended.status == 1
    finding = one_of(ended, topic="cache", saying="s3://pictures/doctor cannot be read")
    assert "127.0.0.1:9" in finding["message"]
    assert "credentials" in finding["remedy"]
    (worker,) = ended.json["workers"]
    assert finding["places"] == [worker["name"]]
    assert worker["source"]["problems"] == []
    assert ended.json["here"]["cache"]["write_problem"] is None


def own_mounts(*mounts):
    """Words that start a process which sees other mounts than this one; skips where none can be made."""
    for words in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            return [*words, "sh", "-ec", "; ".join([*mounts, 'exec "$@"']), "sh"]
    return pytest.skip("cannot make mounts of its own here")


@pytest.mark.integration
def test_a_read_only_cache_and_a_source_that_only_the_submitter_has(command, made_by_colour, tmp_path, service, pictures):
    cache = tmp_path / "cache"
    cache.mkdir()
    before = own_mounts(f"mount --bind {cache} {cache}", f"mount -o remount,ro,bind {cache}", f"mount -t tmpfs tmpfs {pictures}")
    with worker_pool(tmp_path, before=before) as pool:
        ended = command("doctor", made_by_colour(), *portable_options(service, pool), "--json", "--elements", 2)
    assert ended.status == 1
    (worker,) = ended.json["workers"]
    cannot_write = one_of(ended, topic="cache", saying="can be read but not written")
    assert "Read-only file system" in cannot_write["message"]
    assert cannot_write["places"] == [worker["name"]]
    assert worker["cache"]["read_seconds"] > 0
    cannot_read = found(ended, topic="source")
    assert len(cannot_read) == 2
    for finding in cannot_read.values():
        assert finding["places"] == [worker["name"]]
        assert "object store" in finding["remedy"]
    assert leaves_nothing(cache)


@pytest.mark.integration
def test_a_path_that_is_another_folder_there(command, made_by_colour, tmp_path, service):
    """A disk that hosts do not share: the path exists on both, and nobody sees what the other writes."""
    cache = tmp_path / "cache"
    cache.mkdir()
    with worker_pool(tmp_path, before=own_mounts(f"mount -t tmpfs tmpfs {cache}")) as pool:
        ended = command("doctor", made_by_colour(), *portable_options(service, pool), "--json", "--elements", 2)
    assert ended.status == 1
    assert "object store" in one_of(ended, topic="cache", saying="is another place there")["remedy"]
    assert leaves_nothing(cache)


@pytest.mark.integration
def test_workers_without_decant_are_told_from_broken_engines(command, tmp_path, service):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(
        "import sys\n"
        "class Bare:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('pipelines', 'storage', 'decant'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Bare())\n"
    )
    with worker_pool(tmp_path, env=worker_environment(path=(tmp_path / "bare",))) as pool:
        ended = command("doctor", *portable_options(service, pool), "--json", "--elements", 2)
    assert ended.status == 1
    assert "--setup_file" in one_of(ended, topic="engine", saying="workers have no decant")["remedy"]
    assert ended.json["workers"] == []


@pytest.mark.integration
def test_a_job_that_does_not_come_back_ends_in_time_with_what_is_known(command, tmp_path, service):
    """The pool answers, but the `python` that it finds starts nothing."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").write_text("#!/bin/sh\nexit 1\n")
    (programs / "python").chmod(0o755)
    environment = worker_environment()
    with worker_pool(tmp_path, env={**environment, "PATH": f"{programs}:{environment['PATH']}"}) as pool:
        started = time.monotonic()
        ended = command("doctor", *portable_options(service, pool), "--json", "--timeout", 4)
        assert time.monotonic() - started < 40
    assert ended.status == 1
    finding = one_of(ended, topic="engine", saying="did not come back within")
    assert f"127.0.0.1:{pool}" in finding["message"]
    assert "no worker answered" in finding["message"]
    assert f"worker pool must listen at 127.0.0.1:{pool}" in finding["remedy"]
    assert ended.json["job"]["timed_out"] is True
