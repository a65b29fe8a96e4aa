"""Parts: tars that any tool can walk, equal bytes for equal rows, and records that notice every change."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from storage.blocks import encode_block
from storage.errors import CorruptError, FormatError
from storage.hashing import canonical_json, checksum, digest
from storage.label_blocks import decode_label_block
from storage.parts import (
    DeadLetter,
    Extent,
    PartRecord,
    PartStatistics,
    check_extent,
    decode_class_means,
    encode_class_means,
)
from storage.samples import decode_samples
from storage.sources import index_source
from storage.specs import PartSpec
from storage.tar import member_header
from tests.storage.caches import make_labeller

DEAD = frozenset({("ant/001.jpg", None), ("ant/003.jpg", 1)})


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """(bytes, record) of the first unit: 7 samples, 2 views, blocks of 4 samples, dead letters."""
    labeller = make_labeller(tmp_path_factory.mktemp("part"), dead=DEAD)
    return labeller.make_part(index_source(labeller.source).units[0], first_view=0, num_views=2)


def stem(record):
    return record.part.name.replace(".", "-")


def names(record):
    blocks = [f"v{view:05d}-{first:08d}.soft_labels" for view in range(2) for first in (0, 4)]
    return [f"{stem(record)}-{name}" for name in ("keys.samples", *blocks, "means.class_means")]


def test_python_walks_a_part(part):
    data, record = part
    extents = [record.samples, *record.blocks, record.class_means]
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = archive.getmembers()
        for member, extent in zip(members, extents, strict=True):
            assert (member.offset_data, member.size) == (extent.offset, extent.num_bytes)
            held = archive.extractfile(member).read()
            assert f"{checksum(held):016x}" == extent.checksum
            check_extent(held, extent, origin="here")
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) == (0, 0, 0, "", "", 0o644)
            assert member.isreg()
    assert [member.name for member in members] == names(record)
    assert data.endswith(bytes(1024))
    assert len(data) % 512 == 0


def test_gnu_tar_walks_a_part(part, tmp_path):
    data, record = part
    (tmp_path / "part.tar").write_bytes(data)
    listed = subprocess.run(["tar", "tf", tmp_path / "part.tar"], check=True, capture_output=True, text=True)
    assert (listed.stdout.split(), listed.stderr) == (names(record), "")
    subprocess.run(["tar", "xf", tmp_path / "part.tar", "-C", tmp_path], check=True)
    extent = record.blocks[0]
    assert (tmp_path / names(record)[1]).read_bytes() == data[extent.offset : extent.offset + extent.num_bytes]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file to the collector
def test_webdataset_walks_a_part(part, tmp_path):
    data, record = part
    (tmp_path / "part.tar").write_bytes(data)
    found = list(webdataset.WebDataset(str(tmp_path / "part.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [name.rsplit(".", 1)[0] for name in names(record)]
    assert len(decode_samples(found[0]["samples"], origin="here").keys) == record.num_samples
    blocks = [decode_label_block(sample["soft_labels"], origin="here") for sample in found[1:-1]]
    assert [(block.view, block.first_sample, len(block.soft_labels)) for block in blocks] == [
        (extent.view, extent.first_sample, extent.num_rows) for extent in record.blocks
    ]


def test_a_record_says_what_its_tar_holds(part):
    data, record = part
    assert (record.tar_bytes, record.tar_sha256) == (len(data), digest(data))
    assert record.tar_name == f"{record.part.unit_digest[:32]}.v00000-00002.{digest(data)[:16]}.tar"
    assert [(b.view, b.first_sample, b.num_samples, b.num_rows) for b in record.blocks] == [
        (0, 0, 4, 3), (0, 4, 3, 3), (1, 0, 4, 2), (1, 4, 3, 3),
    ]  # fmt: skip
    table = decode_samples(data[record.samples.offset :][: record.samples.num_bytes], origin="here")
    assert len(table.keys) == record.num_samples == 7
    assert [(letter.key, letter.position, letter.view) for letter in record.dead_letters] == [
        ("ant/001.jpg", 1, None),
        ("ant/003.jpg", 3, 1),
    ]
    for extent in record.blocks:
        block = decode_label_block(data[extent.offset :][: extent.num_bytes], origin="here")
        dead = {
            position for position in (1, 3) if (table.keys[position], None) in DEAD or (table.keys[position], block.view) in DEAD
        }
        covered = range(extent.first_sample, extent.first_sample + extent.num_samples)
        assert block.positions.tolist() == [position for position in covered if position not in dead]


def test_equal_rows_give_equal_bytes(part, tmp_path):
    labeller = make_labeller(tmp_path, dead=DEAD)
    data, record = labeller.make_part(index_source(labeller.source).units[0], first_view=0, num_views=2)
    assert data == part[0]
    assert record.to_bytes() == part[1].to_bytes()


def test_a_record_comes_back(part):
    record = part[1]
    data = record.to_bytes()
    assert PartRecord.from_bytes(data, origin="here") == record
    body, end, empty = data.split(b"\n")
    assert body == canonical_json(json.loads(body))
    assert end.decode() == digest(body)
    assert empty == b""


def test_every_flipped_bit_and_truncation_of_a_record_is_refused(part):
    data = part[1].to_bytes()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match="^here: the part record is damaged"):
            PartRecord.from_bytes(bytes(damaged), origin="here")
    for length in range(len(data)):
        with pytest.raises(FormatError, match="^here: the part record is damaged"):
            PartRecord.from_bytes(data[:length], origin="here")
    for more in (b"\n", b" ", data):
        with pytest.raises(FormatError, match="^here: the part record is damaged"):
            PartRecord.from_bytes(data + more, origin="here")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"tar_bytes": "many"},
        {"blocks": [{"offset": -1}]},
        {"surprise": 1},
        {"part": None},
        {"num_samples": None},
        {"num_samples": 2**24 + 1},
        {"samples": {"offset": 2**63, "num_bytes": 1, "checksum": "0" * 16}},
        {"tar_name": "../../../elsewhere"},
        {"tar_name": "0" * 32 + ".v00000-00001." + "0" * 16 + ".tar\n"},
        {"tar_name": "x/" + "0" * 32 + ".v00000-00001." + "0" * 16 + ".tar"},
        {"earlier": [{"tar_name": "../x.tar", "num_rows": 0, "provenance": {}}]},
        {"dead_letters": [{"key": "a", "position": -1, "view": None, "stage": "teacher", "reason": "x"}]},
    ],
)
def test_records_of_other_releases_are_refused(part, change):
    body = canonical_json({**json.loads(part[1].to_bytes().split(b"\n")[0]), **change})
    with pytest.raises(FormatError, match="^here: not a part record this release can read"):
        PartRecord.from_bytes(body + b"\n" + digest(body).encode() + b"\n", origin="here")


def test_an_extent_refuses_other_bytes():
    data = b"some bytes"
    extent = Extent(offset=512, num_bytes=len(data), checksum=f"{checksum(data):016x}")
    check_extent(data, extent, origin="here")
    with pytest.raises(CorruptError, match="here: 9 of 10 bytes at 512; the part is truncated"):
        check_extent(data[:-1], extent, origin="here")
    with pytest.raises(CorruptError, match=f"here: block at 512 has checksum [0-9a-f]{{16}}, committed was {extent.checksum}"):
        check_extent(b"some bytez", extent, origin="here")


def test_names_of_parts_sort_by_view_and_fit_a_tar():
    specs = [
        PartSpec(request="ab" * 32, unit_digest="cd" * 32, first_view=first, num_views=num)
        for first, num in ((0, 1), (0, 2), (2, 98), (100, 900), (99_998, 1))
    ]
    assert specs[2].name == "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd.v00002-00100"
    assert [spec.name for spec in specs] == sorted(spec.name for spec in specs)
    assert member_header(f"{specs[-1].name}-v99998-16777216.soft_labels", num_bytes=2**33 - 1)


def test_a_name_too_long_for_a_tar_is_an_error():
    with pytest.raises(FormatError, match="does not fit a tar header"):
        member_header("x" * 300, num_bytes=1)


def test_statistics_add_up():
    one = PartStatistics(num_rows=2, codec_kl_sum=0.5, codec_kl_max=0.3, mass_kept_sum=1.5, entries_sum=4, num_labelled_rows=1)
    two = PartStatistics(num_rows=3, codec_kl_sum=0.25, codec_kl_max=0.1, num_empty_rows=1, num_full_rows=2, num_agreeing_rows=1)
    assert one.plus(two) == two.plus(one) == PartStatistics(
        num_rows=5, codec_kl_sum=0.75, codec_kl_max=0.3, mass_kept_sum=1.5, entries_sum=4,
        num_empty_rows=1, num_full_rows=2, num_labelled_rows=1, num_agreeing_rows=1,
    )  # fmt: skip
    assert one.plus(PartStatistics()) == one


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_class_means_come_back(means):
    found = decode_class_means(encode_class_means(np.array(means)), num_classes=len(means), origin="here")
    assert found.dtype == np.float64
    for mean, stored in zip(means, found.tolist(), strict=True):
        assert stored == pytest.approx(mean, rel=abs(np.log(max(mean, 1e-300))) * 2**-10 + 1e-3, abs=1e-300)
        assert (stored == 0) == (mean == 0)


@pytest.mark.parametrize(
    ("header", "streams", "problem"),
    [
        ({"kind": "samples", "num_classes": 2}, {}, "not mean class probabilities: kind 'samples'"),
        ({"kind": "class_means"}, {}, "of None classes"),
        ({"kind": "class_means", "num_classes": 0}, {}, "of 0 classes"),
        ({"kind": "class_means", "num_classes": 2**32 + 1}, {}, "of 4294967297 classes"),
        ({"kind": "class_means", "num_classes": 2}, {"logs0": np.zeros(2, np.uint8)}, "stream 'logs1' is missing"),
        (
            {"kind": "class_means", "num_classes": 2},
            {"logs0": np.zeros(2, np.uint8), "logs1": np.zeros(1, np.uint8)},
            "planes of",
        ),
        ({"kind": "class_means", "num_classes": 1}, {"logs0": np.uint8([1]), "logs1": np.uint8([0xFC])}, "above 1 or NaN"),
        ({"kind": "class_means", "num_classes": 1}, {"logs0": np.uint8([0]), "logs1": np.uint8([0x3C])}, "above 1 or NaN"),
    ],
)
def test_class_means_that_cannot_be_are_refused_and_say_where(header, streams, problem):
    with pytest.raises(FormatError, match=f"^here: .*{problem}"):
        decode_class_means(encode_block(header, streams), num_classes=header.get("num_classes", 1), origin="here")


def test_a_dead_letter_names_a_known_stage():
    with pytest.raises(ValueError, match="stage"):
        DeadLetter(key="a", position=0, view=None, stage="lost", reason="x")
