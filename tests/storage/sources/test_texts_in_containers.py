"""Parquet files and WebDataset tars whose samples are texts."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pyarrow as pa
import pytest

from storage.config import ParquetConfig, WebDatasetConfig
from storage.config.load import parse_config
from storage.errors import ConfigError, SampleError, SourceError
from storage.sources import index_source, open_source
from tests.contracts.source_contract import SourceContract, write_file
from tests.storage.sources.tars import tar_bytes
from tests.storage.sources.test_parquet import parquet_bytes
from tests.storage.sources.texts import COMPRESS, text_items

LIMIT = 300


def text_table(texts, *, labels=None, type=None, **kwargs):
    """A Parquet file with a text column beside an image column that nobody asks for."""
    return parquet_bytes(
        [b"x"] * len(texts), labels=labels, image_type=pa.binary(), text=pa.array(texts, type=type or pa.string()), **kwargs
    )


class TestParquet(SourceContract):
    rows_per_file = 8

    def make_items(self):
        return text_items()

    def file(self, items):
        return text_table([item.data for item in items], labels=[item.label for item in items])

    def write(self, root, items):
        for start in range(0, len(items), self.rows_per_file):
            write_file(f"{root}/{start // self.rows_per_file}.parquet", self.file(items[start : start + self.rows_per_file]))
        return ParquetConfig(kind="parquet", path=root, text_column="text", unit_size=4, max_document_bytes=LIMIT)

    def expected_key(self, item):
        file, row = divmod(int(item.name[1:]), self.rows_per_file)
        return f"{file}-{row:08d}"

    def spoil(self, root, items, *, position, config):
        items = [replace(item, data=b"x" * (LIMIT + 1)) if index == position else item for index, item in enumerate(items)]
        write_file(f"{root}/0.parquet", self.file(items[: self.rows_per_file]))


class TestWebDataset(SourceContract):
    items_per_tar = 5

    def make_items(self):
        return text_items()

    def members(self, item):
        suffix = ["", ".gz", ".zst"][int(item.name[1:]) % 3]
        return [(f"{item.name}.txt{suffix}", COMPRESS[suffix](item.data)), (f"{item.name}.cls", b"%d" % item.label)]

    def tar(self, items):
        return tar_bytes([member for item in items for member in self.members(item)])

    def write(self, root, items):
        for start in range(0, len(items), self.items_per_tar):
            write_file(f"{root}/{start // self.items_per_tar}.tar", self.tar(items[start : start + self.items_per_tar]))
        return WebDatasetConfig(kind="webdataset", path=root, text_fields=("txt", "TXT.gz", "txt.zst"), max_document_bytes=LIMIT)

    def expected_key(self, item):
        return item.name

    def spoil(self, root, items, *, position, config):
        items = [replace(item, data=b"x" * (LIMIT + 1)) if index == position else item for index, item in enumerate(items)]
        write_file(f"{root}/0.tar", self.tar(items[: self.items_per_tar]))


def one(tmp_path, name, data, config):
    write_file(f"{tmp_path}/{name}", data)
    source = open_source(config)
    [unit] = source.units()
    return list(source.read(unit)), source.open(unit)


@pytest.mark.parametrize("type", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_column_types(tmp_path, type):
    texts = ["Käse", "", "猫"]
    config = ParquetConfig(kind="parquet", path=str(tmp_path / "a.parquet"), text_column="text", label_column=None)
    samples, reader = one(tmp_path, "a.parquet", text_table([text.encode() for text in texts], type=type), config)
    assert [sample.data.decode() for sample in samples] == texts
    assert [reader.read(position).decode() for position in range(3)] == texts
    reader.close()


def test_a_null_text_is_a_bad_sample(tmp_path):
    config = ParquetConfig(kind="parquet", path=str(tmp_path / "a.parquet"), text_column="text", label_column=None)
    samples, reader = one(tmp_path, "a.parquet", text_table(["a", None]), config)
    assert [sample.error for sample in samples] == [None, "the bytes are null"]
    with pytest.raises(SampleError, match="a-00000001: the bytes are null"):
        reader.read(1)
    reader.close()


def test_columns_that_hold_no_texts_are_refused(tmp_path):
    write_file(f"{tmp_path}/a.parquet", text_table(["a"], labels=[1]))
    for column, message in (("label", "is int64, not string or binary"), ("txt", "no column 'txt'.*source.text_column.*'text'")):
        with pytest.raises(SourceError, match=message):
            open_source(ParquetConfig(kind="parquet", path=str(tmp_path / "a.parquet"), text_column=column)).units()


def test_the_same_texts_have_the_same_digest_in_every_container(tmp_path):
    texts = ["one", "Käse"]
    write_file(f"{tmp_path}/a.parquet", text_table(texts, labels=[0, 1], id=pa.array(["k0", "k1"])))
    members = [member for n, text in enumerate(texts) for member in ((f"k{n}.txt", text.encode()), (f"k{n}.cls", b"%d" % n))]
    write_file(f"{tmp_path}/a.tar", tar_bytes(members))
    rows = b"".join(b'{"id": "k%d", "text": "%b", "label": %d}\n' % (n, text.encode(), n) for n, text in enumerate(texts))
    write_file(f"{tmp_path}/a.jsonl.gz", gzip.compress(rows))
    write_file(f"{tmp_path}/a.csv", b"x,label,k0\none,0,k0\nK\xc3\xa4se,1,k1\n")
    sources = [
        {"kind": "parquet", "path": f"{tmp_path}/a.parquet", "text_column": "text", "key_column": "id"},
        {"kind": "webdataset", "path": f"{tmp_path}/a.tar", "text_fields": ["txt"]},
        {"kind": "jsonl", "path": f"{tmp_path}/a.jsonl.gz", "key_field": "id", "label_field": "label"},
        {
            "kind": "delimited",
            "path": f"{tmp_path}/a.csv",
            "delimiter": ",",
            "text_column": "x",
            "label_column": "label",
            "key_column": "k0",
        },
    ]
    found = set()
    for source in sources:
        config = parse_config({"name": "x", "source": source, "views": {"kind": "tokens"}}, origin="test")
        [unit] = index_source(open_source(config.source)).units
        found.add((unit.digest, unit.key_hash, unit.num_samples))
    assert len(found) == 1


def test_a_bomb_in_a_member_is_one_bad_sample(tmp_path):
    config = WebDatasetConfig(
        kind="webdataset", path=str(tmp_path / "a.tar"), text_fields=("txt.gz",), label_field=None, max_document_bytes=1000
    )
    members = [("a.txt.gz", gzip.compress(bytes(50 << 20))), ("b.txt.gz", b"no gzip"), ("c.txt.gz", gzip.compress(b"text"))]
    samples, reader = one(tmp_path, "a.tar", tar_bytes(members), config)
    assert [sample.data for sample in samples] == [None, None, b"text"]
    assert "max_document_bytes = 1000" in samples[0].error
    assert "truncated or damaged" in samples[1].error
    for position in (0, 1):
        with pytest.raises(SampleError):
            reader.read(position)
    assert reader.read(2) == b"text"


def test_a_tar_without_texts_names_the_option(tmp_path):
    write_file(f"{tmp_path}/a.tar", tar_bytes([("a.jpg", b"x")]))
    source = open_source(
        WebDatasetConfig(kind="webdataset", path=str(tmp_path / "a.tar"), text_fields=("txt",), label_field=None)
    )
    with pytest.raises(SourceError, match=r"has a text \(txt\); they hold jpg; name the text's extension in source.text_fields"):
        list(source.read(source.units()[0]))


def test_pictures_where_texts_are_asked_for_are_found_in_the_config():
    for source in ({"kind": "parquet", "path": "a"}, {"kind": "webdataset", "path": "a"}):
        with pytest.raises(
            ConfigError, match=r"views.kind = tokens is for texts, but source.kind = .* is for texts where source.text_"
        ):
            parse_config({"name": "x", "source": source, "views": {"kind": "tokens"}}, origin="test")
