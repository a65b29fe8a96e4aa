"""`decant label` on workers that were started apart: pickled pipelines over the network, with Beam's own job service and pools."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines import silent_workers
from pipelines.engine import following
from tests.integration.job_service import options_for, start_job_service, start_worker_pool
from tests.pipelines.support import colour_teacher, run_decant, snapshot, timm_teacher, write_config
from tests.pipelines.text.models import documents, save_model

pytestmark = pytest.mark.integration

OTHER_DECANT = "9.9.9"


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """A job service, a worker pool like this process, and one that has another decant; what they say lies in the folder."""
    folder = tmp_path_factory.mktemp("servers")
    other = folder / "site" / f"decant-{OTHER_DECANT}.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text(f"Metadata-Version: 2.1\nName: decant\nVersion: {OTHER_DECANT}\n")
    started = {
        "service": start_job_service(folder / "service"),
        "pool": start_worker_pool(folder / "pool"),
        "other": start_worker_pool(folder / "other", path=[folder / "site"]),
    }
    try:
        for server in started.values():
            server.wait()
        yield started
    finally:
        for server in started.values():
            server.end()


@pytest.fixture
def options(servers):
    return options_for(servers["service"], servers["pool"])


def test_pictures_are_labelled_with_the_bytes_of_a_local_run(command, made, tmp_path, options):
    command("label", made("here", cache=tmp_path / "here"))
    status, out, err = run_decant("label", made(), *options, "--json")
    assert status == 0, err
    assert json.loads(out)["num_computed_rows"] == 48
    assert snapshot(tmp_path / "cache") == snapshot(tmp_path / "here")


def test_texts_are_labelled_with_the_bytes_of_a_local_run(command, tmp_path, options, monkeypatch):
    """From relative paths: a worker's working folder is another."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "bert", "bert")
    (tmp_path / "corpus.txt").write_text("".join(f"{text}\n" for text in documents(12)))
    configs = {
        cache: write_config(
            tmp_path / f"{cache}.json",
            {
                "name": "texts",
                "cache": cache,
                "source": {"kind": "text", "path": "corpus.txt", "unit_size": 6},
                "teacher": {"kind": "masked_lm", "name": "bert", "device": "cpu"},
                "views": {"kind": "masked_tokens", "length": 32, "count": 2, "seed": 1},
                "targets": {"labels": {"k": 5}, "hidden": {"kind": "hidden_states", "layers": [1]}},
                "generation": {"batch_size": 4, "torch_threads": 1},
            },
        )
        for cache in ("here", "there")
    }
    here = command("label", configs["here"], "--json")
    assert here.status == 0, here.err
    there = command("label", configs["there"], *options, "--json")
    assert there.status == 0, there.err
    assert snapshot(tmp_path / "there") == snapshot(tmp_path / "here")
    assert not (tmp_path / "there" / "corpus.txt").exists()


def test_workers_with_another_decant_label_nothing(command, made, tmp_path, servers):
    ended = command("label", made(), *options_for(servers["service"], servers["other"]))
    assert ended.status == 1
    assert f"decant {OTHER_DECANT} (there: 0.1.0)" in ended.err
    assert "has other versions than" in ended.err
    assert "Install the same versions on every worker" in ended.err
    assert "allow_version_differences" not in ended.err
    assert list((tmp_path / "cache").rglob("*.tar")) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a path that means another folder in each process")
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            "teacher",
            ("teacher.checkpoint /proc/self/cwd/teacher.safetensors does not exist on worker host", "into the workers' image"),
        ),
        ("cache", ("the cache /proc/self/cwd/cache, as worker host", "Use a store that all hosts reach")),
    ],
)
def test_a_path_that_only_the_submitter_has_is_named(command, made, tmp_path, options, checkpoint, monkeypatch, changed, words):
    """As on another host: the path leads into each process's own working folder."""
    monkeypatch.chdir(tmp_path)
    own = Path("/proc/self/cwd")
    (tmp_path / "teacher.safetensors").hardlink_to(checkpoint)
    changes = {
        "teacher": timm_teacher(own / "teacher.safetensors"),
        "cache": own / "cache",
    }
    ended = command("label", made(**{changed: changes[changed]}), *options)
    assert ended.status == 1
    for said in words:
        assert said in ended.err
    assert os.uname().nodename in ended.err
    assert list(tmp_path.rglob("*.tar")) == []


def test_a_job_service_that_is_not_there_is_an_error_at_once(command, made, servers):
    options = options_for(servers["service"], servers["pool"])
    options[1] = "--job_endpoint=127.0.0.1:9"
    started = time.monotonic()
    ended = command("label", made(), *options)
    assert ended.status == 2
    assert "no job service answers there (Connection refused)" in ended.err
    assert time.monotonic() - started < 10


def test_a_worker_pool_that_is_not_there_is_an_error_at_once(command, made, servers):
    options = options_for(servers["service"], servers["pool"])
    options[3] = "--environment_config=127.0.0.1:9"
    ended = command("label", made(), *options)
    assert ended.status == 2
    assert "no worker pool answers there (Connection refused)" in ended.err
    assert "worker_pool_main --service_port=9" in ended.err


@pytest.mark.parametrize("victim", ["service", "pool"])
def test_a_server_that_is_killed_ends_the_command(command, made, tmp_path, monkeypatch, victim):
    monkeypatch.setattr(following, "LOST_SECONDS", 2)
    started = {"service": start_job_service(tmp_path / "service"), "pool": start_worker_pool(tmp_path / "pool")}
    killed_at = []

    def kill():
        while not list((tmp_path / "cache").rglob("*.tar")):
            time.sleep(0.05)
        killed_at.append(time.monotonic())
        started[victim].end(signal.SIGKILL)

    try:
        for server in started.values():
            server.wait()
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        config = made(teacher=colour_teacher(seconds_per_batch=1.0), views=8, generation={"views_per_part": 1})
        ended = command("label", config, *options_for(started["service"], started["pool"]))
        assert time.monotonic() - killed_at[0] < 30
    finally:
        for server in started.values():
            server.end()
    assert ended.status == 1
    assert "run the same command again to go on" in ended.err
    assert ("worker pool" if victim == "pool" else "job service") in ended.err


def test_a_worker_that_is_killed_ends_the_command_which_goes_on_when_run_again(command, made, tmp_path, monkeypatch, options):
    """The pool and the service live on, and would wait for ever."""
    killed = []

    def kill():
        while not list((tmp_path / "cache").rglob("*.tar")):
            time.sleep(0.05)
        (alive,) = (tmp_path / "cache" / "runs").glob("*/alive/*.json")
        killed.append(json.loads(alive.read_bytes()))
        os.kill(killed[0]["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    config = made(teacher=colour_teacher(seconds_per_batch=0.25), views=8, generation={"views_per_part": 1})
    with monkeypatch.context() as hurried:
        hurried.setattr(silent_workers, "BEAT_SECONDS", 1.0)
        hurried.setattr(silent_workers, "SILENT_SECONDS", 10.0)
        ended = command("label", config, *options)
    assert ended.status == 1
    assert f"worker process {killed[0]['pid']} on host {killed[0]['host']} has not been heard of" in ended.err
    assert "run the same command again to go on" in ended.err
    num_there = len(list((tmp_path / "cache").rglob("*.tar")))
    assert 0 < num_there < 24
    again = command("label", config, *options, "--json")
    assert again.status == 0, again.err
