"""Copies of texts with words replaced: the same copies wherever and whenever they are made."""

from __future__ import annotations

import gzip
import json

import fsspec
import pytest

from storage.config import DelimitedConfig, JsonlConfig
from storage.config.load import parse_config
from storage.config.source import AugmentationConfig
from storage.errors import ConfigError, SampleError, SourceError
from storage.sources import index_source, open_source
from storage.sources.augmented import load_candidates, replace_words
from tests.contracts.source_contract import Item, SourceContract, write_file
from tests.storage.sources.texts import text_items

TABLE = {
    "plain": ("simple", "flat"),
    "text": ("prose", "writing", "words"),
    "word": ("term",),
    "it's": ("this is",),
    "猫": ("犬",),
}
GOLDEN = [
    "Plain prose, a term; it's 犬 in plain words.",
    "Plain text, a term; it's 猫 in plain words.",
    "Plain text, a term; this is 犬 in flat words.",
]
COPIES = 1
ITEMS_PER_FILE = 4


def table(candidates=TABLE):
    return "".join(json.dumps({"word": word, "candidates": names}) + "\n" for word, names in candidates.items()).encode()


class TestContract(SourceContract):
    """Every second sample is a copy of the one before it."""

    @pytest.fixture
    def root(self, tmp_path):
        yield str(tmp_path / "source")
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs[:] = [""]

    def make_items(self):
        found = []
        for item in text_items()[:7]:
            key = self.key_of(item)
            text = item.data.decode()
            copy = replace_words(text, candidates=TABLE, share=0.5, seed=3, key=key, copy=1)
            found += [item, Item(name=f"{item.name}#1", label=item.label, data=copy.encode())]
        return found

    def key_of(self, item):
        file, line = divmod(int(item.name[1:4]), ITEMS_PER_FILE)
        return f"{file}.tsv:{line + 2}"

    def expected_key(self, item):
        return self.key_of(item) + item.name[4:]

    def write(self, root, items):
        originals = items[:: COPIES + 1]
        for start in range(0, len(originals), ITEMS_PER_FILE):
            of_file = originals[start : start + ITEMS_PER_FILE]
            lines = [b"text\tlabel\n", *(item.data + f"\t{item.label}\n".encode() for item in of_file)]
            write_file(f"{root}/{start // ITEMS_PER_FILE}.tsv", b"".join(lines))
        write_file(f"{root}.table", table())
        augmentation = AugmentationConfig(candidates=f"{root}.table", copies=COPIES, replaced_share=0.5, seed=3)
        return DelimitedConfig(kind="delimited", path=root, label_column="label", unit_size=4, augmentation=augmentation)

    def spoil(self, root, items, *, position, config):
        raise NotImplementedError

    def test_one_changed_sample_changes_its_unit(self, items, root):
        before = index_source(open_source(self.write(f"{root}/before", items)))
        write_file(f"{root}/before.table", table({**TABLE, "text": ("other",)}))
        after = index_source(open_source(self.write_only_texts(f"{root}/before", items)))
        assert before.units[0].digest != after.units[0].digest
        assert before.units[0].unit.stat_token != after.units[0].unit.stat_token

    def write_only_texts(self, root, items):
        augmentation = AugmentationConfig(candidates=f"{root}.table", copies=COPIES, replaced_share=0.5, seed=3)
        return DelimitedConfig(kind="delimited", path=root, label_column="label", unit_size=4, augmentation=augmentation)

    def test_memo_spares_reading_until_a_file_changes(self, config, items, root, tmp_path):
        from storage.sources import SourceMemo

        memo = SourceMemo(str(tmp_path / "memo.parquet"))
        index_source(open_source(config), memo=memo)
        assert index_source(open_source(config), memo=memo).num_units_read == 0
        write_file(f"{root}.table", table({**TABLE, "text": ("other",)}))
        assert index_source(open_source(config), memo=memo).num_units_read == 2

    test_an_unreadable_sample_does_not_stop_the_others = None
    test_units_with_unreadable_samples_are_not_remembered = None


def test_golden_copies():
    # Labels are of these very copies, so they may never change.
    text = "Plain text, a word; it's 猫 in plain words."
    copies = [replace_words(text, candidates=TABLE, share=0.4, seed=0, key="a.tsv:2", copy=copy) for copy in (1, 2, 3)]
    assert copies == GOLDEN


def test_words_are_replaced_whole_and_nothing_else_is():
    replaced = replace_words(
        "Texts: text-TEXT, contexts (Text)", candidates={"text": ("prose",)}, share=1.0, seed=0, key="k", copy=1
    )
    assert replaced == "Texts: prose-prose, contexts (Prose)"
    assert replace_words("", candidates=TABLE, share=1.0, seed=0, key="k", copy=1) == ""
    assert replace_words("猫\n", candidates=TABLE, share=1.0, seed=0, key="k", copy=1) == "犬\n"


def test_shares_hold_in_expectation():
    text = " ".join(["text"] * 4000)
    words = replace_words(text, candidates=TABLE, share=0.4, seed=0, key="k", copy=1).split()
    assert len(words) == 4000
    assert 0.37 < sum(word != "text" for word in words) / 4000 < 0.43
    for name in TABLE["text"]:
        assert 0.11 < words.count(name) / 4000 < 0.16
    others = [replace_words(text, candidates=TABLE, share=0.4, seed=0, key="k", copy=copy) for copy in (2, 3)]
    assert len({" ".join(words), *others}) == 3


def test_bad_documents_have_bad_copies(tmp_path):
    write_file(f"{tmp_path}/a.jsonl", b'{"text": "a text"}\n{"txt": 1}\n')
    write_file(f"{tmp_path}/t.jsonl.gz", gzip.compress(table()))
    augmentation = AugmentationConfig(candidates=f"{tmp_path}/t.jsonl.gz", copies=2, replaced_share=1.0)
    source = open_source(JsonlConfig(kind="jsonl", path=f"{tmp_path}/a.jsonl", augmentation=augmentation))
    [unit] = source.units()
    samples = list(source.read(unit))
    assert [sample.key for sample in samples] == [f"a.jsonl:{line}{copy}" for line in (1, 2) for copy in ("", "#1", "#2")]
    assert samples[0].data == b"a text"
    assert all(sample.data.split()[1].decode() in TABLE["text"] for sample in samples[1:3])
    assert [sample.data for sample in samples[3:]] == [None] * 3
    reader = source.open(unit)
    assert [reader.read(position) for position in range(3)] == [sample.data for sample in samples[:3]]
    with pytest.raises(SampleError, match=r"a.jsonl:2#1: .*field 'text' is missing"):
        reader.read(4)
    reader.close()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 1 is not"),
        (b'["word"]', "line 1 is not"),
        (b'{"word": "a"}', "line 1 is not .*'candidates'"),
        (b'{"word": "a", "candidates": []}', "no word or no candidates"),
        (b'{"word": "a", "candidates": [""]}', "no word or no candidates"),
        (b'{"word": "a", "candidates": ["b"]}\n{"word": "a", "candidates": ["c"]}', "word 'a' stands twice, again on line 2"),
        (b"\n", "holds no words"),
    ],
)
def test_a_table_that_is_none(tmp_path, line, message):
    write_file(f"{tmp_path}/t.jsonl", line)
    with pytest.raises(SourceError, match=message):
        load_candidates(f"{tmp_path}/t.jsonl")


def test_a_table_that_is_missing_is_found_when_units_are_listed(tmp_path):
    write_file(f"{tmp_path}/a.jsonl", b'{"text": "a text"}\n')
    augmentation = AugmentationConfig(candidates=f"{tmp_path}/t.jsonl")
    with pytest.raises(SourceError, match="t.jsonl: it does not exist"):
        open_source(JsonlConfig(kind="jsonl", path=f"{tmp_path}/a.jsonl", augmentation=augmentation)).units()


def test_pictures_have_no_words():
    source = {"kind": "parquet", "path": "a", "augmentation": {"candidates": "t"}}
    with pytest.raises(ConfigError, match="source: augmentation replaces words.*give text_column"):
        parse_config({"name": "x", "source": source}, origin="test")
