"""`decant label` from the command line to the committed label set."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid

import fsspec
import numpy as np
import pytest

from pipelines import transforms
from storage.cache import Cache
from storage.label_blocks import decode_label_block
from storage.label_set import LabelSet
from storage.parts import BlockExtent
from tests.pipelines.networks import DRIFT
from tests.pipelines.support import (
    ROOT,
    colour_teacher,
    experiment,
    folder_source,
    picture,
    run_decant,
    shard_bytes,
    snapshot,
    start_decant,
    timm_teacher,
    write_config,
    write_parquet,
)


@pytest.fixture
def made(tmp_path, pictures, checkpoint):
    """Write a config whose parts can be changed; the cache is `tmp_path/cache`."""

    def make(file="config", **changes):
        data = {
            "cache": tmp_path / "cache",
            "source": folder_source(pictures),
            "teacher": timm_teacher(checkpoint),
            **changes,
        }
        return write_config(tmp_path / f"{file}.json", experiment(**data))

    return make


def test_labelling_makes_a_label_set_that_can_be_shown_and_verified(command, made, tmp_path):
    report = command("label", made(), "--json").json
    assert {name: report[name] for name in ("name", "num_units", "num_samples", "num_rows", "num_computed_rows")} == {
        "name": "tiny",
        "num_units": 3,
        "num_samples": 24,
        "num_rows": 48,
        "num_computed_rows": 48,
    }
    assert report["rows_per_second"] > 0
    assert 0 < report["mass_kept"] <= 1
    shown = command("cache", "show", tmp_path / "cache", "tiny", "--json").json
    assert (shown["id"], shown["num_rows"], shown["num_views"], shown["num_classes"]) == (report["label_set"], 48, 2, 3)
    assert shown["classes"] == ["blue", "green", "red"]
    assert shown["provenance"][0]["device"] == "cpu"
    verified = command("cache", "verify", tmp_path / "cache", "--json")
    assert (verified.status, verified.json["problems"]) == (0, [])
    assert verified.json["label_sets"][0]["num_rows"] == 48
    (listed,) = command("cache", "ls", tmp_path / "cache", "--json").json["label_sets"]
    assert (listed["id"], listed["names"]) == (report["label_set"], ["tiny"])


def test_the_text_says_what_was_done_and_what_to_do_next(command, made, tmp_path):
    ended = command("label", made())
    assert ended.status == 0
    assert "tiny: 48 of 48 rows to label, in 3 work units" in ended.out
    assert f"next: decant cache show {tmp_path / 'cache'} tiny" in ended.out
    assert ended.err == ""
    assert "nothing to do, all 48 rows are in the cache; the teacher was not run" in command("label", made()).out


def test_the_second_run_loads_no_teacher_and_changes_nothing(command, made, tmp_path, loads):
    first = command("label", made(), "--json").json
    assert loads == ["timm"]
    before = snapshot(tmp_path / "cache")
    transforms._teachers.clear()
    second = command("label", made(), "--json").json
    assert loads == ["timm"]
    assert second["num_computed_rows"] == 0
    assert second["label_set"] == first["label_set"]
    assert snapshot(tmp_path / "cache") == before


def test_a_plan_says_what_labelling_then_does(command, made, loads):
    plan = command("plan", made(), "--json").json
    assert (plan["num_reused_rows"], plan["num_computed_rows"], plan["num_computed_parts"], plan["teacher_loaded"]) == (
        0,
        48,
        3,
        True,
    )
    command("label", made())
    transforms._teachers.clear()
    plan = command("plan", made("more", views=4), "--json").json
    assert (plan["num_reused_rows"], plan["num_computed_rows"], plan["num_computed_parts"], plan["teacher_loaded"]) == (
        48,
        48,
        3,
        False,
    )
    assert loads == ["timm"]
    said = command("plan", made("more", views=4)).out
    assert re.search(r"reused +48 +3  the same teacher, views, target and pictures", said)
    assert re.search(r"compute +48 +3  more views", said)


def test_more_views_compute_only_those_and_fewer_none(command, made, tmp_path):
    command("label", made(views=2))
    before = snapshot(tmp_path / "cache")
    more = command("label", made(views=5), "--json").json
    assert (more["num_rows"], more["num_computed_rows"]) == (120, 72)
    after = snapshot(tmp_path / "cache")
    assert {name: after[name] for name in before if name.startswith(("requests/", "label_sets/"))}.items() <= before.items()
    fewer = command("label", made(views=1), "--json").json
    assert (fewer["num_rows"], fewer["num_computed_rows"]) == (24, 0)
    assert command("cache", "verify", tmp_path / "cache").status == 0


def test_new_shards_are_computed_and_old_ones_reused(command, made, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "000.tar").write_bytes(shard_bytes(range(6)))
    config = made(source={"kind": "webdataset", "path": str(shards / "*.tar")})
    assert command("label", config, "--json").json["num_computed_rows"] == 12
    (shards / "001.tar").write_bytes(shard_bytes(range(6, 10)))
    again = command("label", config, "--json").json
    assert (again["num_rows"], again["num_computed_rows"], again["num_units"]) == (20, 8, 2)


def test_a_moved_source_and_a_renamed_experiment_compute_nothing(command, made, tmp_path, pictures, loads):
    first = command("label", made(), "--json").json
    moved = shutil.copytree(pictures, tmp_path / "moved")
    second = command("label", made("other", source=folder_source(moved), name="other"), "--json").json
    assert (second["num_computed_rows"], second["label_set"]) == (0, first["label_set"])
    assert loads == ["timm"]
    (listed,) = command("cache", "ls", tmp_path / "cache", "--json").json["label_sets"]
    assert listed["names"] == ["other", "tiny"]


def test_another_teacher_view_or_target_is_another_request(command, made, tmp_path):
    command("label", made())
    for change in ("views.seed=1", "target.k=3", "target.codec={kind: exact}", "teacher.precision=bf16"):
        assert command("label", made(), "--set", change, "--json").json["num_computed_rows"] == 48
    assert len(command("cache", "ls", tmp_path / "cache", "--json").json["label_sets"]) == 5


@pytest.mark.parametrize("damage", ["missing", "truncated", "damaged record"])
def test_a_damaged_part_is_found_and_made_anew(command, made, tmp_path, damage):
    command("label", made())
    before = snapshot(tmp_path / "cache")
    name = sorted(name for name in before if name.endswith(".tar"))[1]
    victim = tmp_path / "cache" / name
    if damage == "missing":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(before[name][:-1024])
    else:
        victim = victim.with_name(name.rsplit("/", 1)[-1].rsplit(".", 2)[0] + ".json")
        victim.write_bytes(victim.read_bytes().replace(b"num_samples", b"num_rumples"))
        ended = command("label", made())
        assert ended.status == 1
        assert f"{victim.name}: the part record is damaged" in ended.err
        assert "remove it and run decant label again" in ended.err
        victim.unlink()
    if damage != "damaged record":
        verified = command("cache", "verify", tmp_path / "cache")
        assert verified.status == 1
        assert victim.name in verified.out
    assert command("label", made(), "--json").json["num_computed_rows"] == 16
    assert snapshot(tmp_path / "cache") == before
    assert command("cache", "verify", tmp_path / "cache").status == 0


@pytest.mark.parametrize("file", ["manifest.json", "parts-*.parquet", "class_means-*.block"])
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_label_set_is_found_and_made_anew(command, made, tmp_path, file, damage):
    command("label", made())
    before = snapshot(tmp_path / "cache")
    (victim,) = (tmp_path / "cache" / "label_sets").glob(f"*/{file}")
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-3] + b"xyz")
    assert command("label", made(), "--json").json["num_computed_rows"] == 0
    assert snapshot(tmp_path / "cache") == before


def test_a_label_set_follows_a_part_that_was_made_anew_with_other_bytes(command, made, tmp_path, monkeypatch):
    config = made(teacher=colour_teacher())
    first = command("label", config, "--json").json
    (victim,) = sorted((tmp_path / "cache" / "requests").glob("*/*.tar"))[:1]
    victim.unlink()
    transforms._teachers.clear()
    monkeypatch.setenv(DRIFT, "1.01")
    again = command("label", config, "--json").json
    assert (again["num_computed_rows"], again["label_set"]) == (16, first["label_set"])
    assert not victim.exists()
    assert command("cache", "verify", tmp_path / "cache").status == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_opening_a_label_set_starts_no_threads(command, made, tmp_path):
    """Arrow's threads hold Python objects for a moment, and a process that ends in that moment aborts."""
    command("label", made())
    code = """
import os, sys
from storage.cache import Cache
from storage.label_set import LabelSet
before = len(os.listdir("/proc/self/task"))
LabelSet.open(Cache.at(sys.argv[1]), name_or_id="tiny")
assert len(os.listdir("/proc/self/task")) == before
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "cache"], cwd=ROOT, check=True)


def test_a_smaller_k_or_a_coarser_codec_is_served_from_what_is_stored(command, made, loads, tmp_path):
    exact = {"target": {"k": 3, "codec": {"kind": "exact"}}}
    command("label", made("wide", **exact))
    transforms._teachers.clear()
    for number, target in enumerate(
        [{"k": 2, "codec": {"kind": "exact"}}, {"k": 3}, {"k": 1, "codec": {"kind": "compact", "levels": 64}}]
    ):
        config = made(f"narrow{number}", target=target)
        plan = command("plan", config, "--json").json
        assert (plan["num_lent_rows"], plan["num_computed_rows"], plan["teacher_loaded"]) == (48, 0, False)
        assert "from wider labels of them: top 3, exact codec" in command("plan", config).out
        report = command("label", config, "--json").json
        assert (report["num_rows"], report["num_computed_rows"]) == (48, 0)
        assert "served by      parts that hold top 3" in command("cache", "show", tmp_path / "cache", report["label_set"]).out
        assert command("cache", "verify", tmp_path / "cache", report["label_set"]).status == 0
    assert loads == ["timm"]
    refused = command("plan", made("warm", target={"k": 2, "generation_temperature": 2.0}))
    assert "target.generation_temperature is 1.0, not 2.0" in refused.out


def write_sources(folder):
    """The same 20 pictures in every kind of source, two units each."""
    (folder / "pictures").mkdir()
    for number in range(20):
        (folder / "pictures" / f"{number:06d}.png").write_bytes(picture(number % 3, number))
    (folder / "000.tar").write_bytes(shard_bytes(range(12)))
    (folder / "001.tar").write_bytes(shard_bytes(range(12, 20)))
    write_parquet(folder / "train.parquet", num_rows=20, row_group_size=4)
    return {
        "image_folder": folder_source(folder / "pictures", unit_size=12, labelled=False),
        "webdataset": {"kind": "webdataset", "path": f"{folder}/{{000..001}}.tar", "classes": ["blue", "green", "red"]},
        "parquet": {"kind": "parquet", "path": f"{folder}/train.parquet", "unit_size": 12},
    }


def stored_labels(cache):
    """Class ids and probabilities of a label set's rows in order."""
    label_set = LabelSet.open(Cache.at(str(cache)), name_or_id="tiny")
    rows = []
    for index, part in enumerate(label_set.parts.to_pylist()):
        for block in part["blocks"]:
            data = label_set.cache.read_extent(label_set.tar_path(index), BlockExtent(**block))
            rows.append(decode_label_block(data, origin=part["tar_name"]).soft_labels)
    return [np.concatenate([getattr(row, name) for row in rows]) for name in ("class_ids", "probs", "rest")]


def test_every_kind_of_source_gives_the_same_labels_of_the_same_pictures(command, made, tmp_path):
    found = {}
    for kind, source in write_sources(tmp_path).items():
        config = made(cache=tmp_path / kind, source=source, views={"kind": "evaluation"})
        report = command("label", config, "--json").json
        assert (report["num_units"], report["num_samples"], report["num_rows"]) == (2, 20, 20)
        assert (report["agreement"] is None) == (kind == "image_folder")
        assert command("cache", "verify", tmp_path / kind).status == 0
        found[kind] = stored_labels(tmp_path / kind)
    for kind in ("webdataset", "parquet"):
        for one, other in zip(found["image_folder"], found[kind], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.s3
def test_source_and_cache_in_an_object_store(command, made, s3_bucket, tmp_path):
    root = f"s3://{s3_bucket}/{uuid.uuid4().hex}"
    fs = fsspec.filesystem("s3")
    for number in range(2):
        fs.pipe_file(f"{root}/shards/{number:03d}.tar", shard_bytes(range(6 * number, 6 * number + 6)))
    config = made(cache=f"{root}/cache", source={"kind": "webdataset", "path": f"{root}/shards/*.tar"})
    report = command("label", config, "--json").json
    assert (report["num_rows"], report["num_computed_rows"]) == (24, 24)
    assert command("label", config, "--json").json["num_computed_rows"] == 0
    assert command("label", config, "--set", "views.count=3", "--json").json["num_computed_rows"] == 12
    assert command("cache", "verify", f"{root}/cache").status == 0
    local = made("local", source={"kind": "webdataset", "path": f"{root}/shards/*.tar"})
    command("label", local)
    remote = {path.split("/cache/", 1)[1]: fs.cat_file(path) for path in fs.find(f"{root}/cache/requests")}
    here = {name: data for name, data in snapshot(tmp_path / "cache").items() if name.startswith("requests/")}
    assert here.items() <= remote.items()


@pytest.mark.s3
@pytest.mark.integration
def test_workers_reach_the_object_store(made, s3_bucket, command):
    root = f"s3://{s3_bucket}/{uuid.uuid4().hex}"
    fsspec.filesystem("s3").pipe_file(f"{root}/shards/0.tar", shard_bytes(range(6)))
    fsspec.filesystem("s3").pipe_file(f"{root}/shards/1.tar", shard_bytes(range(6, 12)))
    config = made(cache=f"{root}/cache", source={"kind": "webdataset", "path": f"{root}/shards/{{0,1}}.tar"})
    report = command("label", config, "--workers", 2, "--json").json
    assert report["num_computed_rows"] == 24
    assert command("cache", "verify", f"{root}/cache").status == 0


def test_a_cache_in_memory_lasts_as_long_as_the_process(command, made):
    config = made(cache=f"memory://{uuid.uuid4().hex}")
    assert command("label", config, "--json").json["num_computed_rows"] == 48
    assert command("label", config, "--json").json["num_computed_rows"] == 0


def test_a_cache_in_memory_is_refused_where_workers_could_not_see_it(command, made):
    ended = command("label", made(cache="memory://apart"), "--workers", 2)
    assert ended.status == 2
    assert "memory://apart lies in the memory of this process, where its workers cannot see it" in ended.err


@pytest.mark.parametrize(
    "options",
    [
        ["--runner=FnApiRunner"],
        ["--runner", "DirectRunner"],
        ["--direct_num_workers=2"],
        ["--direct_num_workers", "2", "--direct_running_mode=multi_threading"],
    ],
)
def test_beams_options_pass_through(command, made, tmp_path, options):
    report = command("label", made(), "--json", *options)
    assert report.json["num_computed_rows"] == 48
    assert command("cache", "verify", tmp_path / "cache").status == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no_such=1"], "neither decant nor Beam knows --no_such"),
        (["second.yaml"], "'second.yaml' is neither an option nor the value of one"),
        (["--runner=DaskRunner"], "it drops elements of ordinary pipelines without an error"),
        (["--workers", "0"], "generation.workers"),
        (["--set", "target.kk=3"], "target.kk"),
    ],
)
def test_wrong_usage_ends_with_status_2_before_anything_is_written(command, made, tmp_path, words, message):
    for output in ([], ["--json"]):
        ended = command("label", made(), *words, *output)
        assert ended.status == 2
        assert message in ended.err
        if output:
            assert ended.json["status"] == 2
            assert message in ended.json["message"]
    assert not (tmp_path / "cache").exists()


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
