"""Parquet that needs no Decant to be read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from storage.interchange import export_labels, parquet
from storage.label_set import UsedPart
from storage.sources import index_source
from storage.specs import CompactCodec, PartSpec
from tests.storage.caches import make_labeller, stored_row
from tests.storage.caches import make_request as labeller_request
from tests.storage.interchange.label_sets import make_label_set, make_request, rows_of


def read(folder):
    """Rows of all files, in order."""
    rows = []
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            rows += file.read(use_threads=False).to_pylist()
    return rows


def test_every_row_is_there_with_its_classes(tmp_path):
    request = make_request(num_classes=40, k=6, codec=CompactCodec(levels=8))
    units = [["a", "ü/b c.jpg"], ["d", "e", "f"]]
    label_set = make_label_set(tmp_path / "cache", units=units, request=request, num_views=3, dead=frozenset({("e", 1)}))
    export_labels(label_set, url=str(tmp_path / "out"), layout="parquet")
    before = rows_of(label_set)
    found = read(tmp_path / "out")
    order = [(key, view) for view in range(3) for unit in units for key in unit if (key, view) != ("e", 1)]
    assert [(row["key"], row["view"]) for row in found] == order
    for row in found:
        ids, probs, rest, label = before[row["key"], row["view"]]
        assert dict(zip(row["class_ids"], row["probs"], strict=True)) == dict(zip(ids.tolist(), probs.tolist(), strict=True))
        assert (row["rest"], row["label"]) == (rest, label)
    assert len({len(row["class_ids"]) for row in found}) > 1


def test_the_schema_says_what_the_labels_are(tmp_path):
    label_set = make_label_set(tmp_path / "cache", units=[["a"]], labelled=False)
    export_labels(label_set, url=str(tmp_path / "out"), layout="parquet", views=[1])
    schema = pq.read_schema(tmp_path / "out" / "labels-000000.parquet")
    assert [str(field.type) for field in schema] == [
        "string",
        "int32",
        "int64",
        "list<element: int32 not null>",
        "list<element: float not null>",
        "float",
    ]
    said = json.loads(schema.metadata[b"decant"])
    assert said["request"] == label_set.manifest.request.to_json()
    assert (said["label_set"], said["views"], said["k"], said["num_classes"]) == (label_set.manifest.id, [1], 3, 10)
    (row,) = read(tmp_path / "out")
    assert (row["label"], row["view"]) == (None, 1)


def test_files_and_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_PER_FILE", 20)
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 10)
    keys = [f"{number}" for number in range(57)]
    label_set = make_label_set(tmp_path / "cache", units=[keys], num_views=1, block=4)
    export_labels(label_set, url=str(tmp_path / "out"), layout="parquet")
    groups = []
    for path in sorted((tmp_path / "out").glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            groups.append([file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)])
    assert groups == [[8, 8, 8], [8, 8, 8], [9]]
    assert [row["key"] for row in read(tmp_path / "out")] == keys


def test_lists_of_different_lengths_stay_with_their_rows(tmp_path):
    request = make_request(num_classes=300, k=None, codec=CompactCodec(levels=9))
    label_set = make_label_set(
        tmp_path / "cache", units=[[f"{n}" for n in range(50)]], request=request, num_views=1, shape="steep"
    )
    export_labels(label_set, url=str(tmp_path / "out"), layout="parquet")
    before = rows_of(label_set)
    for row in read(tmp_path / "out"):
        assert sorted(row["class_ids"]) == sorted(before[row["key"], 0][0].tolist())
        np.testing.assert_allclose(sum(row["probs"]) + row["rest"], 1, atol=1e-5)


def test_parts_that_hold_more_classes_are_narrowed(tmp_path):
    wide = make_labeller(tmp_path, request=labeller_request(k=5))
    narrow = replace(wide, request=labeller_request(k=2))
    wide.label(name="wide")
    narrow.cache.add_request(narrow.request)
    used = []
    for indexed in index_source(wide.source).units:
        part = PartSpec(request=wide.request.fingerprint(), unit_digest=indexed.digest, first_view=0, num_views=2)
        record = wide.cache.find_part(part)
        used.append((UsedPart(unit_name=indexed.unit.name, part=part, first_view=0, num_views=2), record))
    label_set = narrow.commit(used, name="mixed", num_views=2)
    assert label_set.manifest.served_by == (wide.request.target,)
    export_labels(label_set, url=str(tmp_path / "out"), layout="parquet")
    found = read(tmp_path / "out")
    assert len(found) == 34
    for row in found:
        dense = np.array(stored_row(wide.request, row["key"], row["view"]))
        assert len(row["class_ids"]) == 2
        np.testing.assert_allclose(row["probs"], dense[row["class_ids"]], atol=1e-6)
        assert row["rest"] + sum(row["probs"]) == pytest.approx(1, abs=1e-5)
