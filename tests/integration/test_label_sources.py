"""`decant label` over every kind of source, and with source and cache in object stores."""

from __future__ import annotations

import uuid

import fsspec
import numpy as np
import pytest

from storage.cache import Cache
from storage.label_blocks import decode_label_block
from storage.label_set import LabelSet
from storage.parts import BlockExtent
from tests.pipelines.support import (
    folder_source,
    picture,
    shard_bytes,
    snapshot,
    write_parquet,
)


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
