from __future__ import annotations

import gzip
import sys
import tarfile
from pathlib import Path

import pytest
from fsspec.registry import _registry

from storage.config import WebDatasetConfig
from storage.errors import DuplicateKeyError, SampleError, SourceError
from storage.images import decode_image
from storage.sources import NO_LABEL, index_source, open_source
from tests.contracts.source_contract import SourceContract, write_file
from tests.storage.sources.tars import tar_bytes

SHARED_DATA = Path(__file__).parents[3].parent / "shared" / "data"
ITEMS_PER_TAR = 6


def members_of(items):
    return [member for item in items for member in ((f"{item.name}.jpg", item.data), (f"{item.name}.cls", b"%d\n" % item.label))]


class TestContract(SourceContract):
    def write(self, root, items):
        num_tars = -(-len(items) // ITEMS_PER_TAR)
        for number in range(num_tars):
            of_tar = items[number * ITEMS_PER_TAR : (number + 1) * ITEMS_PER_TAR]
            write_file(f"{root}/train-{number:03d}.tar", tar_bytes(members_of(of_tar)))
        return WebDatasetConfig(kind="webdataset", path=f"{root}/train-{{000..{num_tars - 1:03d}}}.tar")

    def expected_key(self, item):
        return item.name

    def spoil(self, root, items, *, position, config):
        members = [member for member in members_of(items[:ITEMS_PER_TAR]) if member[0] != f"{items[position].name}.jpg"]
        write_file(f"{root}/train-000.tar", tar_bytes(members))


def source(path, **kwargs):
    return open_source(WebDatasetConfig(kind="webdataset", path=path, **kwargs))


def one_tar(tmp_path, data, **kwargs):
    write_file(f"{tmp_path}/a.tar", data)
    return source(f"{tmp_path}/a.tar", **kwargs)


def samples_of(opened):
    """Every sample, after checking that random access tells the same."""
    [unit] = opened.units()
    samples = list(opened.read(unit))
    reader = opened.open(unit)
    assert list(reader.keys) == [sample.key for sample in samples]
    assert reader.labels.tolist() == [sample.label for sample in samples]
    for sample in samples:
        if sample.error is None:
            assert reader.read(sample.position) == sample.data
        else:
            with pytest.raises(SampleError):
                reader.read(sample.position)
    return samples


def refused(opened, message):
    [unit] = opened.units()
    for action in (lambda: list(opened.read(unit)), lambda: opened.open(unit)):
        with pytest.raises(SourceError, match=message):
            action()


SMALL = [("0001.jpg", b"J" * 700), ("0001.cls", b"3"), ("0002.jpg", b"K" * 512), ("0002.cls", b"4")]


def test_patterns_keep_the_order_of_braces_and_sort_globs(tmp_path):
    for name in ("b-1", "b-0", "a-1", "a-0", "a-10"):
        write_file(f"{tmp_path}/{name}.tar", tar_bytes(SMALL))
    write_file(f"{tmp_path}/readme.txt", b"")

    def names(path):
        return [unit.name for unit in source(path).units()]

    assert names(f"{tmp_path}/{{b,a}}-{{0..1}}.tar") == ["b-0.tar", "b-1.tar", "a-0.tar", "a-1.tar"]
    assert names(f"{tmp_path}/{{b,a}}-*.tar") == ["b-0.tar", "b-1.tar", "a-0.tar", "a-1.tar", "a-10.tar"]
    assert names(f"{tmp_path}/a-?.tar") == ["a-0.tar", "a-1.tar"]
    assert names(str(tmp_path)) == ["a-0.tar", "a-1.tar", "a-10.tar", "b-0.tar", "b-1.tar"]
    assert names((f"{tmp_path}/b-0.tar", f"{tmp_path}/a-*.tar")) == ["b-0.tar", "a-0.tar", "a-1.tar", "a-10.tar"]


def test_equal_file_names_are_told_apart_by_folder(root):
    for name in ("x/train/0.tar", "x/val/0.tar", "x/val/deep/1.tar"):
        write_file(f"{root}/{name}", tar_bytes(SMALL))
    assert [unit.name for unit in source(f"{root}/*/**/*.tar").units()] == ["train/0.tar", "val/0.tar", "val/deep/1.tar"]


def test_a_name_with_pattern_characters_that_exists_is_no_pattern(tmp_path):
    write_file(f"{tmp_path}/a[0]{{1,2}}.tar", tar_bytes(SMALL))
    assert [unit.name for unit in source(f"{tmp_path}/a[0]{{1,2}}.tar").units()] == ["a[0]{1,2}.tar"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{root}/no-*.tar", "no file matches"),
        ("{root}/b-{{0..3}}.tar", r"b-1.tar: it does not exist"),
        ("{root}/b-{{0..3.tar", "[Uu]nbalanced"),
        ("{root}/empty", "holds no file that ends in .tar"),
        ("{root}/b-{{0,0}}.tar", "named twice"),
    ],
)
def test_paths_that_find_nothing_are_refused(tmp_path, path, message):
    write_file(f"{tmp_path}/b-0.tar", tar_bytes(SMALL))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=message):
        source(path.format(root=tmp_path)).units()


def test_keys_and_fields_follow_webdataset(tmp_path):
    members = [
        ("__meta__/x.json", b"{}"),
        ("README", b"no sample"),
        ("./dir.v2/0001.seg.png", b"mask"),
        ("./dir.v2/0001.JPG", b"one"),
        ("./dir.v2/0001.cls", b" 12\n"),
        ("./dir.v2/._0001.jpg", b"AppleDouble"),
        ("../../etc/0002.png", b"two"),
        ("../../etc/0002.webp", b"other"),
        ("../../etc/0002.cls", b"0"),
    ]
    found = [(sample.key, sample.label, sample.data) for sample in samples_of(one_tar(tmp_path, tar_bytes(members)))]
    assert found == [("./dir.v2/0001", 12, b"one"), ("../../etc/0002", 0, b"two")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


def test_the_first_image_field_of_the_config_is_taken(tmp_path):
    tar = tar_bytes([("1.png", b"png"), ("1.jpg", b"jpg")])
    for fields, image in ((("jpg", "png"), b"jpg"), (("PNG", "jpg"), b"png")):
        [sample] = samples_of(one_tar(tmp_path, tar, image_fields=fields, label_field=None))
        assert sample.data == image


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, format):
    names = [f"{'d' * 60}/{'e' * 60}/{index:04d}" for index in range(3)]
    if format != tarfile.USTAR_FORMAT:
        names.append(f"{'é' * 90}/猫")
    members = [(f"{name}.jpg", name.encode()) for name in names]
    samples = samples_of(one_tar(tmp_path, tar_bytes(members, format=format), label_field=None))
    assert [(sample.key, sample.data) for sample in samples] == [(name, name.encode()) for name in names]


@pytest.mark.parametrize(
    ("label", "message"),
    [(b"x", "no ASCII number"), (b"", "no ASCII number"), (b"1.0", "no ASCII number"), (b"-2", "negative"), (b"5", "beyond")],
)
def test_a_bad_label_is_one_bad_sample(tmp_path, label, message):
    tar = tar_bytes([*SMALL, ("0003.jpg", b"L"), ("0003.cls", label)])
    samples = samples_of(one_tar(tmp_path, tar, classes=("a", "b", "c", "d", "e")))
    assert [sample.error is None for sample in samples] == [True, True, False]
    assert message in samples[2].error
    assert (samples[2].data, samples[2].label) == (None, NO_LABEL)


def test_minus_one_is_no_label(tmp_path):
    [sample] = samples_of(one_tar(tmp_path, tar_bytes([("1.jpg", b"x"), ("1.cls", b"-1")])))
    assert (sample.label, sample.error) == (NO_LABEL, None)


def test_missing_members_are_bad_samples(tmp_path):
    samples = samples_of(one_tar(tmp_path, tar_bytes([*SMALL, ("3.json", b"{}"), ("3.cls", b"1"), ("4.jpg", b"x")])))
    assert [sample.error for sample in samples[:2]] == [None, None]
    assert "no picture" in samples[2].error
    assert "cls, json" in samples[2].error
    assert "no label" in samples[3].error


def test_a_field_that_no_sample_has_is_refused(tmp_path):
    opened = one_tar(tmp_path, tar_bytes([("1.jpg", b"x"), ("1.txt", b"y")]))
    refused(opened, r"not one of its 1 samples has a label \(cls\); they hold jpg, txt; .*null")
    refused(one_tar(tmp_path, tar_bytes([("1.npy", b"x"), ("1.cls", b"1")])), "not one of its 1 samples has a picture")
    refused(one_tar(tmp_path, tar_bytes([("1", b"x"), ("2", b"1")])), "holds 2 files, none named")


def test_links_are_not_followed(tmp_path):
    link = tarfile.TarInfo("0003.jpg")
    link.type, link.linkname = tarfile.LNKTYPE, "0001.jpg"
    samples = samples_of(one_tar(tmp_path, tar_bytes([*SMALL, (link, b""), ("0003.cls", b"1")])))
    assert [sample.key for sample in samples] == ["0001", "0002", "0003"]
    assert "is a link" in samples[2].error


def test_a_key_that_comes_again_is_refused_with_both_places(tmp_path):
    opened = one_tar(tmp_path, tar_bytes([*SMALL, ("0001.png", b"x")]))
    [unit] = opened.units()
    with pytest.raises(DuplicateKeyError, match="'0001' stands for sample 0 and again for sample 2"):
        list(opened.read(unit))
    with pytest.raises(DuplicateKeyError, match="sample 0 and again for sample 2"):
        opened.open(unit)


def test_a_member_that_comes_twice_is_refused(tmp_path):
    opened = one_tar(tmp_path, tar_bytes([("1.jpg", b"x"), ("1.jpg", b"y")]), label_field=None)
    with pytest.raises(DuplicateKeyError, match=r"member 'jpg' twice, at bytes 512 and 1536"):
        list(opened.read(opened.units()[0]))


def test_an_empty_tar_has_no_samples(tmp_path):
    assert samples_of(one_tar(tmp_path, bytes(1024))) == []


def test_any_truncation_is_refused(tmp_path):
    whole = tar_bytes(SMALL)
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    assert len(whole) > end + 1024
    expected = samples_of(one_tar(tmp_path, whole))
    assert samples_of(one_tar(tmp_path, whole[: end + 1024])) == expected, "two zero blocks are enough"
    for length in [*range(0, end + 1024, 61), *range(512, end + 1024, 512), end + 1023]:
        refused(one_tar(tmp_path, whole[:length]), "truncated")


def test_no_flipped_bit_of_a_header_loses_samples(tmp_path):
    whole = tar_bytes(SMALL)
    expected = samples_of(one_tar(tmp_path, whole))
    headers = [0, 1536, 2560, 3584]
    assert all(whole[header + 257 : header + 262] == b"ustar" for header in headers)
    refusals = 0
    for header in headers:
        for byte in range(0, 512, 7):
            damaged = bytearray(whole)
            damaged[header + byte] ^= 1 << (byte % 8)
            opened = one_tar(tmp_path, bytes(damaged))
            try:
                assert list(opened.read(opened.units()[0])) == expected
            except SourceError:
                refusals += 1
    assert refusals > 250


def test_other_damage_is_refused(tmp_path):
    whole = tar_bytes(SMALL)
    refused(one_tar(tmp_path, whole[:1536] + bytes(512) + whole[2048:]), "data follow its end at byte 1536")
    refused(one_tar(tmp_path, whole + whole), "concatenated")
    refused(one_tar(tmp_path, gzip.compress(whole)), r"compressed \(gzip\).*decompress")
    refused(one_tar(tmp_path, b"\x89PNG" * 1000), "truncated or damaged, or no tar")


def test_a_negative_size_ends_in_an_error(tmp_path):
    header = bytearray(tar_bytes(SMALL)[:512])
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    refused(one_tar(tmp_path, bytes(header) + bytes(4096)), "truncated")


def test_a_shorter_tar_is_noticed_by_an_open_reader(tmp_path):
    opened = one_tar(tmp_path, tar_bytes(SMALL))
    reader = opened.open(opened.units()[0])
    write_file(f"{tmp_path}/a.tar", tar_bytes(SMALL)[:2900])
    with pytest.raises(SourceError, match="shorter"):
        reader.read(1)


def test_other_fields_change_the_stat_token(tmp_path):
    write_file(f"{tmp_path}/a.tar", tar_bytes(SMALL))
    options = ({}, {"label_field": None}, {"image_fields": ("jpg",)}, {"classes": ("a", "b")})
    tokens = {source(f"{tmp_path}/a.tar", **kwargs).units()[0].stat_token for kwargs in options}
    assert len(tokens) == 4


def test_a_missing_client_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(_registry, "gs", raising=False)
    with pytest.raises(SourceError, match=r"pip install 'decant\[gcs\]'"):
        source("gs://bucket/{000..001}.tar").units()


@pytest.mark.skipif(not (SHARED_DATA / "cc12m_32pairs").is_dir(), reason="the shared data folder is not here")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the file open
def test_a_genuine_shard_reads_as_webdataset_reads_it():
    import webdataset

    path = str(SHARED_DATA / "cc12m_32pairs" / "cc12m-train-0000.tar")
    samples = samples_of(source(path, label_field=None))
    theirs = list(webdataset.WebDataset(path, shardshuffle=False, nodesplitter=None))
    assert [(sample.key, sample.data) for sample in samples] == [(sample["__key__"], sample["jpg"]) for sample in theirs]
    assert len(samples) == 32
    for sample in samples:
        assert decode_image(sample.data, max_pixels=10**8).mode == "RGB"
    refused(source(path), r"has a label \(cls\); they hold jpg, json, txt")
    assert index_source(source(path, label_field=None)).num_samples == 32
