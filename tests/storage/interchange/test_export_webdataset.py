"""A WebDataset that its own package reads, without pickle."""

from __future__ import annotations

import contextlib
import io
import tarfile

import numpy as np
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from storage.interchange import export_labels
from storage.interchange import webdataset as exported
from storage.interchange.rows import LabelledRows
from storage.soft_labels import SoftLabels
from storage.sources.base import NO_LABEL
from storage.specs import CompactCodec
from tests.storage.interchange.label_sets import make_label_set, make_request, rows_of

ODD_KEYS = ["a.b.jpg", "/etc/passwd", "../up", "dir.x/ü猫 b", "__meta__", "a%2Eb", "x" * 400, "a//b", "end/"]


def read(folder):
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in sorted(folder.glob("*.tar"))]
        sources = [{"url": file.name, "stream": file} for file in files]
        samples = webdataset.tariterators.group_by_keys(webdataset.tariterators.tar_file_expander(sources))
        return list(webdataset.filters.decode()(samples))


def test_webdataset_decodes_every_row(tmp_path):
    request = make_request(num_classes=40, k=6, codec=CompactCodec(levels=30))
    label_set = make_label_set(tmp_path / "cache", units=[["a", "b"], ODD_KEYS], request=request, dead=frozenset({("b", 1)}))
    export_labels(label_set, url=str(tmp_path / "out"), layout="webdataset")
    before = rows_of(label_set)
    found = read(tmp_path / "out")
    assert len(found) == len(before) == 21
    for sample in found:
        key, view = sample["json"]["key"], sample["json"]["view"]
        ids, probs, rest, label = before.pop((key, view))
        assert exported.parse_member_stem(sample["__key__"]) == (key, view)
        assert (sample["json"]["rest"], sample["json"]["label"]) == (rest, label)
        assert sample["class_ids.npy"].dtype == np.int32
        order = np.argsort(-sample["probs.npy"], kind="stable")
        np.testing.assert_array_equal(sample["class_ids.npy"][order], ids)
        np.testing.assert_array_equal(sample["probs.npy"][order], probs)
    assert not before


def test_members_stay_below_the_folder_they_are_unpacked_in(tmp_path):
    label_set = make_label_set(tmp_path / "cache", units=[ODD_KEYS], num_views=1)
    export_labels(label_set, url=str(tmp_path / "out"), layout="webdataset")
    with tarfile.open(tmp_path / "out" / "labels-000000.tar") as archive:
        for member in archive:
            assert not member.name.startswith("/")
            assert ".." not in member.name.split("/")
            assert member.isreg()
            assert (member.mtime, member.uid, member.mode) == (0, 0, 0o644)


def test_shards_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "ROWS_PER_SHARD", 10)
    keys = [f"{number:02d}" for number in range(30)]
    label_set = make_label_set(tmp_path / "cache", units=[keys], num_views=1)
    report = export_labels(label_set, url=str(tmp_path / "out"), layout="webdataset")
    assert sorted(report.files) == ["labels-000000.tar", "labels-000001.tar", "labels-000002.tar"]
    assert [sample["json"]["key"] for sample in read(tmp_path / "out")] == keys
    assert all((tmp_path / "out" / name).read_bytes()[-1024:] == bytes(1024) for name in report.files)


def test_samples_without_a_hard_label_say_null(tmp_path):
    label_set = make_label_set(tmp_path / "cache", units=[["a"]], num_views=1, labelled=False)
    export_labels(label_set, url=str(tmp_path / "out"), layout="webdataset")
    (sample,) = read(tmp_path / "out")
    assert sample["json"]["label"] is None


@given(
    name=st.text(st.characters(max_codepoint=126, min_codepoint=33), min_size=1, max_size=120),
    num_bytes=st.integers(0, 2**33 - 1),
)
def test_headers_are_those_of_tarfile(name, num_bytes):
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    assert exported.member_header(name, num_bytes=num_bytes) == info.tobuf(format=tarfile.PAX_FORMAT)


@given(
    key=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20),
    view=st.integers(0, 99999),
)
def test_any_key_comes_back_from_the_name_that_webdataset_gives_a_sample(key, view):
    rows = LabelledRows(
        view=view,
        keys=(key,),
        labels=np.array([NO_LABEL]),
        soft_labels=SoftLabels(
            class_ids=np.array([[1]], dtype=np.int32),
            probs=np.array([[0.5]], dtype=np.float32),
            rest=np.array([0.5], dtype=np.float32),
            num_classes=3,
        ),
    )
    file = io.BytesIO()
    exported.write_rows(file, rows, span=slice(0, 1))
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        stems, fields = zip(*(base_plus_ext(name) for name in archive.getnames()), strict=True)
    assert fields == ("json", "class_ids.npy", "probs.npy")
    assert {exported.parse_member_stem(stem) for stem in stems} == {(key, view)}
