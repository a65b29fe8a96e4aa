"""Every kind of documents keeps the contract of sources, in every compression."""

from __future__ import annotations

import json
from dataclasses import replace

import fsspec
import pytest

from storage.config import DelimitedConfig, JsonlConfig, TextConfig
from tests.contracts.source_contract import SourceContract, delete, write_file
from tests.storage.sources.texts import COMPRESS, text_items

LINES_PER_FILE = 7
TOO_LONG = b"x" * 999
LIMIT = 500


class Lines(SourceContract):
    """Two files of lines; `suffix` says how they are compressed."""

    ending: str
    suffix = ""
    header = b""

    def make_items(self):
        return text_items(labelled=self.labelled)

    def line(self, item):
        raise NotImplementedError

    def config_of(self, path):
        raise NotImplementedError

    def file(self, items):
        return COMPRESS[self.suffix](self.header + b"".join(self.line(item) + b"\n" for item in items))

    def write(self, root, items):
        for start in range(0, len(items), LINES_PER_FILE):
            name = f"part-{start // LINES_PER_FILE}.{self.ending}{self.suffix}"
            write_file(f"{root}/{name}", self.file(items[start : start + LINES_PER_FILE]))
        return self.config_of(root)

    def expected_key(self, item):
        file, line = divmod(int(item.name[1:]), LINES_PER_FILE)
        return f"part-{file}.{self.ending}:{line + (2 if self.header else 1)}"

    def bad(self, item):
        """Something as long as the item, so that units stay where they were listed."""
        raise NotImplementedError

    def spoil(self, root, items, *, position, config):
        items = [self.bad(item) if index == position else item for index, item in enumerate(items[:LINES_PER_FILE])]
        write_file(f"{root}/part-0.{self.ending}{self.suffix}", self.file(items))


class Local:
    """For variants that reach stores just as another class here does."""

    @pytest.fixture
    def root(self, tmp_path):
        yield str(tmp_path / "source")
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs[:] = [""]


class TestJsonl(Lines):
    ending = "jsonl"

    def line(self, item):
        record = {"id": item.name, "text": item.data.decode(), "label": item.label}
        return json.dumps(record, ensure_ascii=item.label == 1).encode()

    def config_of(self, path):
        return JsonlConfig(kind="jsonl", path=path, label_field="label", unit_size=4, max_document_bytes=LIMIT)

    def spoil(self, root, items, *, position, config):
        lines = [self.line(item) for item in items[:LINES_PER_FILE]]
        lines[position] = b"[" + lines[position][1:]
        write_file(f"{root}/part-0.jsonl{self.suffix}", COMPRESS[self.suffix](b"".join(line + b"\n" for line in lines)))


class TestJsonlGz(Local, TestJsonl):
    suffix = ".gz"


class TestJsonlKeys(Local, TestJsonl):
    """Keys from a field."""

    def config_of(self, path):
        return super().config_of(path).model_copy(update={"key_field": "id"})

    def expected_key(self, item):
        return item.name

    def spoil(self, root, items, *, position, config):
        data = self.file(items[:LINES_PER_FILE])
        # The text becomes a list of as many bytes.
        whole = json.dumps(items[position].data.decode()).encode()
        assert data.count(whole) == 1
        write_file(f"{root}/part-0.jsonl", data.replace(whole, b"[" + b" " * (len(whole) - 2) + b"]"))


class TestDelimited(Local, Lines):
    """SST-2's style: tabs, a header, quotes that mean nothing."""

    ending = "tsv"
    header = b"sentence\tlabel\n"

    def line(self, item):
        return item.data + f"\t{item.label}".encode()

    def config_of(self, path):
        return DelimitedConfig(
            kind="delimited", path=path, text_column="sentence", label_column="label", unit_size=4, max_document_bytes=LIMIT
        )

    def bad(self, item):
        return replace(item, label="x")


class TestDelimitedZst(TestDelimited):
    suffix = ".zst"


class TestText(Lines):
    ending = "txt"
    suffix = ".gz"
    labelled = False

    def line(self, item):
        return item.data

    def config_of(self, path):
        return TextConfig(kind="text", path=path, unit_size=4, max_document_bytes=LIMIT)

    def bad(self, item):
        return replace(item, data=TOO_LONG)


class TestTextZst(Local, TestText):
    suffix = ".zst"


class TestTextFiles(SourceContract):
    """One document a file, every third compressed."""

    labelled = False

    def make_items(self):
        return [replace(item, data=item.data + b"\nsecond line\n") for item in text_items(labelled=False)]

    def name(self, item):
        suffix = ["", ".gz", ".zst"][int(item.name[1:]) % 3]
        return f"deep/{item.name}.txt{suffix}", COMPRESS[suffix]

    def write(self, root, items):
        for item in items:
            name, compress = self.name(item)
            write_file(f"{root}/{name}", compress(item.data))
        return TextConfig(kind="text", path=root, documents="files", unit_size=9)

    def expected_key(self, item):
        return f"deep/{item.name}.txt"

    def spoil(self, root, items, *, position, config):
        delete(f"{root}/{self.name(items[position])[0]}")


class TestTextFilesByKeys(TestTextFiles):
    """Units end where the names say so."""

    def write(self, root, items):
        return super().write(root, items).model_copy(update={"unit_ends": "keys"})
