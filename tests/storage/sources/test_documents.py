"""Plain text as documents: places, keys, damage, size."""

from __future__ import annotations

import gzip
import random

import pytest
import zstandard

from storage.config import TextConfig
from storage.errors import DuplicateKeyError, SourceError
from storage.sources import NO_LABEL, open_source
from storage.sources import compression as compression_module
from tests.contracts.source_contract import write_file
from tests.storage.sources.texts import COMPRESS, samples_of, source, written


def test_lines_are_kept_as_they_are(tmp_path):
    data = b"\xef\xbb\xbffirst \r\n\n  two\t\xff\n\r\nlast"
    samples = samples_of(written(tmp_path, "a.txt", data))
    assert [(sample.key, sample.data) for sample in samples] == [
        ("a.txt:1", b"first "),
        ("a.txt:2", b""),
        ("a.txt:3", b"  two\t\xff"),
        ("a.txt:4", b""),
        ("a.txt:5", b"last"),
    ]
    assert {(sample.label, sample.error) for sample in samples} == {(NO_LABEL, None)}
    kept = samples_of(written(tmp_path, "a.txt", data, skip_blank_lines=True, unit_size=2))
    assert [sample.key for sample in kept] == ["a.txt:1", "a.txt:3", "a.txt:5"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_names_below_the_path_are_keys(tmp_path, suffix):
    for name in ("b.txt", "deep/er/a.txt", "deep/b.text"):
        write_file(f"{tmp_path}/corpus/{name}{suffix}", COMPRESS[suffix](b"x\n"))
    write_file(f"{tmp_path}/corpus/readme.md", b"x\n")
    keys = ["b.txt:1", "deep/b.text:1", "deep/er/a.txt:1"]
    assert [sample.key for sample in samples_of(source(tmp_path / "corpus"))] == keys
    assert [sample.key for sample in samples_of(source(f"{tmp_path}/corpus/**/*.te*xt{suffix}"))] == keys[1:2]
    assert [sample.key for sample in samples_of(source(f"{tmp_path}/corpus/deep/er/a.txt{suffix}"))] == ["a.txt:1"]


def test_files_of_equal_name_are_refused(tmp_path):
    for name in ("x/a.txt", "y/a.txt", "z/a.txt.gz", "z/a.txt"):
        write_file(f"{tmp_path}/{name}", gzip.compress(b"x\n") if name.endswith("gz") else b"x\n")
    with pytest.raises(DuplicateKeyError, match=r"x/a.txt and .*y/a.txt have the same name 'a.txt'.*give the folder"):
        source(f"{tmp_path}/{{x,y}}/a.txt").units()
    with pytest.raises(DuplicateKeyError, match=r"z/a.txt and .*z/a.txt.gz have the same name"):
        source(tmp_path / "z").units()
    for name in ("x/a.jsonl", "y/a.jsonl"):
        write_file(f"{tmp_path}/{name}", b'{"text": "x", "id": "%b"}\n' % name.encode())
    opened = source(f"{tmp_path}/{{x,y}}/a.jsonl", "jsonl", key_field="id")
    assert [sample.key for sample in samples_of(opened)] == ["x/a.jsonl", "y/a.jsonl"]


def test_a_unit_reads_its_own_bytes_and_no_others(tmp_path):
    lines = [b"%05d %s" % (number, b"x" * (number % 50)) for number in range(1000)]
    opened = written(tmp_path, "a.txt", b"\n".join(lines), unit_size=64)
    units = opened.units()
    assert [unit.name for unit in units[:2]] == ["a.txt:00000-00064", "a.txt:00064-00128"]
    assert units[-1].name == "a.txt:00960-01000"
    start, end = units[7].locator["bytes"]
    damaged = bytearray((tmp_path / "a.txt").read_bytes())
    damaged[:start], damaged[end:] = b"\n" * start, b"\n" * (len(damaged) - end)
    (tmp_path / "a.txt").write_bytes(damaged)
    samples = list(opened.read(units[7]))
    assert [sample.data for sample in samples] == lines[448:512]
    assert samples[0].key == "a.txt:449"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_is_one_unit(tmp_path, suffix):
    data = b"".join(b"%d\n" % number for number in range(20000))
    opened = written(tmp_path, f"a.txt{suffix}", COMPRESS[suffix](data), unit_size=10)
    assert [unit.name for unit in opened.units()] == [f"a.txt{suffix}"]
    assert [sample.data for sample in samples_of(opened)] == data.split()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_not_whole_is_refused(tmp_path, suffix):
    data = COMPRESS[suffix](b"".join(b"%d\n" % random.Random(number).getrandbits(64) for number in range(3000)))
    for length in (0, 3, len(data) // 3, len(data) // 2, len(data) - 1):
        opened = written(tmp_path, f"a.txt{suffix}", data[:length])
        [unit] = opened.units()
        with pytest.raises(SourceError, match=f"a.txt{suffix} is truncated or damaged"):
            list(opened.read(unit))
        with pytest.raises(SourceError, match="truncated or damaged"):
            opened.open(unit)
    flipped = bytearray(data)
    flipped[-6] ^= 1  # in the checksum of the end
    if suffix == ".gz":
        with pytest.raises(SourceError, match="truncated or damaged"):
            samples_of(written(tmp_path, "a.txt.gz", bytes(flipped)))


def test_decompression_holds_a_chunk_not_the_file(tmp_path):
    data = zstandard.compress(bytes(1 << 26))
    assert len(data) < 1 << 16
    write_file(f"{tmp_path}/a.txt.zst", data)
    assert max(len(chunk) for chunk in compression_module.read_chunks(f"{tmp_path}/a.txt.zst")) <= 1 << 24
    opened = source(tmp_path / "a.txt.zst", max_document_bytes=1 << 20)
    [sample] = opened.read(opened.units()[0])
    assert sample.error == f"it is {1 << 26} bytes long, more than source.max_document_bytes = {1 << 20}"


def test_long_documents(tmp_path):
    long = b"x" * (10 << 20)
    opened = written(tmp_path, "a.txt", b"short\n" + long + b"\nend")
    assert [sample.data for sample in samples_of(opened)] == [b"short", long, b"end"]
    samples = samples_of(source(tmp_path / "a.txt", max_document_bytes=1 << 20))
    assert [sample.data for sample in samples] == [b"short", None, b"end"]
    assert "10485760 bytes long, more than source.max_document_bytes = 1048576" in samples[1].error


def test_a_file_that_changed_after_it_was_listed_is_refused(tmp_path):
    opened = written(tmp_path, "a.txt", b"1\n2\n3\n4\n", unit_size=2)
    units = opened.units()
    (tmp_path / "a.txt").write_bytes(b"1\n2\n3 4\n")
    assert [sample.data for sample in opened.read(units[0])] == [b"1", b"2"]
    with pytest.raises(SourceError, match=r"has changed since it was listed: bytes 4 to 8 hold 1 documents, not 2"):
        list(opened.read(units[1]))


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="hold no document"):
        written(tmp_path, "a.txt", b"").units()
    with pytest.raises(SourceError, match="hold no document"):
        written(tmp_path, "a.txt", b"\n \n", skip_blank_lines=True).units()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"holds no file that ends in .txt, .txt.gz"):
        source(tmp_path / "empty").units()


def test_listing_again_reads_only_what_changed(tmp_path, monkeypatch):
    for name in "ab":
        write_file(f"{tmp_path}/{name}.txt", b"1\n2\n")
    opened = source(tmp_path)
    before = opened.units()
    read = []
    monkeypatch.setattr("storage.sources.documents.read_chunks", lambda url, **kwargs: read.append(url) or iter([b"1\n2\n3\n"]))
    assert opened.units() == before
    assert read == []
    write_file(f"{tmp_path}/b.txt", b"1\n2\n3\n")
    assert opened.units()[1].name == "b.txt:00000-00003"
    assert [url.rsplit("/", 1)[-1] for url in read] == ["b.txt"]


def test_bad_files_are_bad_samples(tmp_path):
    contents = {
        "a.txt": b"x" * 50,
        "b.txt": b"",
        "c.txt.gz": b"no gzip",
        "d.txt.zst": zstandard.compress(bytes(1 << 24)),
        "e.txt": b"y",
    }
    for name, data in contents.items():
        write_file(f"{tmp_path}/{name}", data)
    samples = samples_of(source(tmp_path, documents="files", max_document_bytes=20))
    assert [sample.key for sample in samples] == ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt"]
    assert [sample.data for sample in samples] == [None, b"", None, None, b"y"]
    for position, message in {
        0: "longer than source.max_document_bytes = 20",
        2: "truncated or damaged",
        3: "longer than",
    }.items():
        assert message in samples[position].error


def test_units_of_files_stay_in_one_folder(tmp_path):
    for name in ("x/1.txt", "x/2.txt", "x/3.txt", "y/4.txt"):
        write_file(f"{tmp_path}/{name}", name.encode())
    opened = open_source(TextConfig(kind="text", path=(f"{tmp_path}/x", f"{tmp_path}/y"), documents="files", unit_size=2))
    assert [unit.locator["files"] for unit in opened.units()] == [["1.txt", "2.txt"], ["3.txt"], ["4.txt"]]
    assert [sample.data for sample in samples_of(opened)] == [b"x/1.txt", b"x/2.txt", b"x/3.txt", b"y/4.txt"]
