"""What every source must do. A test class inherits `SourceContract` and says how its kind is written.

Setup writes with fsspec alone, not with the code under test.
"""

from __future__ import annotations

import json
import pickle
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import numpy as np
import pytest

from storage.config.source import SourceConfig
from storage.errors import SampleError, SourceError
from storage.hashing import key_hash
from storage.sources import SourceMemo, SourceUnit, UnitDigest, index_source, open_source

NUM_ITEMS = 14
NUM_CLASSES = 3


@dataclass(frozen=True, kw_only=True)
class Item:
    """A sample to write: a name unique in the source, its label and its bytes."""

    name: str
    label: int
    data: bytes


def make_items() -> list[Item]:
    random = np.random.default_rng(0)
    return [
        Item(name=f"s{index:03d}", label=index * NUM_CLASSES // NUM_ITEMS, data=random.bytes(40 + 7 * index))
        for index in range(NUM_ITEMS)
    ]


def write_file(url: str, data: bytes) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    fs.makedirs(fs._parent(path), exist_ok=True)
    fs.pipe_file(path, data)


def delete(url: str) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    fs.rm(path, recursive=True)


def through_json(unit: SourceUnit) -> SourceUnit:
    return replace(unit, locator=json.loads(json.dumps(unit.locator)))


class SourceContract(ABC):
    """`write` and `expected_key` describe a kind; the fixture `root` gives an empty folder in every store."""

    labelled = True
    """Whether samples of the kind have labels."""

    def make_items(self) -> list[Item]:
        """Return the items that are written; bytes and labels are such as the kind can hold."""
        return make_items()

    @abstractmethod
    def write(self, root: str, items: Sequence[Item]) -> SourceConfig:
        """Write items so that they make several units, and return the config that reads them."""

    @abstractmethod
    def expected_key(self, item: Item) -> str: ...

    @abstractmethod
    def spoil(self, root: str, items: Sequence[Item], *, position: int, config: SourceConfig) -> None:
        """Make the picture of one item of the first unit unreadable, after the source was listed."""

    @pytest.fixture
    def items(self) -> list[Item]:
        return self.make_items()

    @pytest.fixture
    def config(self, root: str, items: list[Item]) -> SourceConfig:
        return self.write(root, items)

    def test_listing_is_stable(self, config):
        source = open_source(config)
        units = source.units()
        assert len(units) > 1
        assert units == source.units() == open_source(config).units()
        assert len({unit.name for unit in units}) == len(units)
        assert all(unit.stat_token for unit in units)

    def test_samples_come_in_order_without_holes(self, config, items):
        source = open_source(config)
        samples = []
        for unit in source.units():
            of_unit = list(source.read(unit))
            assert [sample.position for sample in of_unit] == list(range(len(of_unit)))
            samples += of_unit
        assert [sample.key for sample in samples] == [self.expected_key(item) for item in items]
        assert [sample.label for sample in samples] == [item.label for item in items]
        assert [sample.data for sample in samples] == [item.data for item in items]
        assert [sample.error for sample in samples] == [None] * len(items)

    def test_a_worker_reads_units_that_travelled(self, config, items):
        # A worker has the config and a unit from JSON; it never lists.
        units = [through_json(unit) for unit in open_source(config).units()]
        images = [sample.data for unit in units for sample in open_source(config).read(unit)]
        assert images == [item.data for item in items]

    def test_random_access_equals_reading(self, config):
        source = open_source(config)
        for unit in map(through_json, source.units()):
            samples = list(source.read(unit))
            reader = open_source(config).open(unit)
            assert list(reader.keys) == [sample.key for sample in samples]
            assert reader.labels.dtype == np.int64
            assert reader.labels.tolist() == [sample.label for sample in samples]
            for sample in reversed(samples):
                assert reader.read(sample.position) == sample.data
            for outside in (-1, len(samples)):
                with pytest.raises(IndexError, match="position"):
                    reader.read(outside)
            reader.close()

    def test_threads_share_a_reader(self, config):
        source = open_source(config)
        unit = source.units()[0]
        images = [sample.data for sample in source.read(unit)]
        reader = source.open(unit)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(reader.read, list(range(len(images))) * 3)) == images * 3
        reader.close()

    def test_source_and_units_can_be_pickled(self, config):
        source = open_source(config)
        units = source.units()
        copy, copied_units = pickle.loads(pickle.dumps((source, units)))
        assert copied_units == units
        assert copy.classes == source.classes
        assert list(copy.read(copied_units[0])) == list(source.read(units[0]))

    def test_reading_can_stop_early(self, config):
        source = open_source(config)
        before = threading.active_count()
        samples = source.read(source.units()[0])
        next(samples)
        samples.close()
        # A store's own event loop may have started; threads of the test's server end when they have answered.
        deadline = time.monotonic() + 10
        while threading.active_count() > before + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before + 1

    def test_index_holds_what_was_written(self, config, items):
        index = index_source(open_source(config))
        assert index.num_samples == len(items)
        assert index.num_units_read == len(index.units)
        start = 0
        for indexed in index.units:
            of_unit = items[start : start + indexed.num_samples]
            assert indexed.key_hash == key_hash(self.expected_key(item) for item in of_unit)
            digest = UnitDigest()
            for sample in open_source(config).read(indexed.unit):
                digest.add(sample)
            assert indexed.digest == digest.hexdigest()
            start += indexed.num_samples

    def test_digest_does_not_depend_on_the_place(self, config, items, root, tmp_path):
        here = index_source(open_source(config))
        for elsewhere in (f"{root}/moved", str(tmp_path / "elsewhere"), "memory://elsewhere"):
            there = index_source(open_source(self.write(elsewhere, items)))
            assert [(unit.unit.name, unit.digest, unit.key_hash) for unit in there.units] == [
                (unit.unit.name, unit.digest, unit.key_hash) for unit in here.units
            ]

    @pytest.mark.parametrize("change", ["data", "label"])
    def test_one_changed_sample_changes_its_unit(self, items, root, tmp_path, change):
        if change == "label" and not self.labelled:
            pytest.skip("samples of this kind have no labels")
        before = index_source(open_source(self.write(f"{root}/before", items)))
        changed: dict[str, Any] = {
            "data": bytes([items[0].data[0] ^ 1]) + items[0].data[1:],
            "label": items[0].label + 1,
        }
        items[0] = replace(items[0], **{change: changed[change]})
        after = index_source(open_source(self.write(f"{root}/after", sorted(items, key=self.expected_key))))
        assert before.units[0].digest != after.units[0].digest
        if change == "data":
            assert [unit.digest for unit in before.units[1:]] == [unit.digest for unit in after.units[1:]]

    def test_memo_spares_reading_until_a_file_changes(self, config, items, root, tmp_path):
        memo = SourceMemo(str(tmp_path / "memo.parquet"))
        first = index_source(open_source(config), memo=memo)
        again = index_source(open_source(config), memo=memo)
        assert again.num_units_read == 0
        assert again.units == first.units
        items[0] = replace(items[0], data=items[0].data + b"!")
        changed = index_source(open_source(self.write(root, items)), memo=memo)
        assert changed.num_units_read >= 1
        assert changed.units[0].digest != first.units[0].digest
        assert changed.units[-1].digest == first.units[-1].digest

    def test_an_unreadable_sample_does_not_stop_the_others(self, config, items, root, tmp_path):
        source = open_source(config)
        units = source.units()
        whole = index_source(source)
        self.spoil(root, items, position=1, config=config)
        samples = list(source.read(units[0]))
        assert [sample.key for sample in samples] == [self.expected_key(item) for item in items[: len(samples)]]
        assert samples[1].data is None
        assert samples[1].error
        assert all(sample.error is None and sample.data is not None for sample in samples if sample.position != 1)
        reader = source.open(units[0])
        with pytest.raises(SampleError, match=samples[1].key):
            reader.read(1)
        assert reader.read(2) == items[2].data
        reader.close()
        digest = UnitDigest()
        for sample in samples:
            digest.add(sample)
        assert digest.hexdigest() != whole.units[0].digest

    def test_units_with_unreadable_samples_are_not_remembered(self, config, items, root, tmp_path):
        memo = SourceMemo(str(tmp_path / "memo.parquet"))
        source = open_source(config)
        units = source.units()
        self.spoil(root, items, position=1, config=config)
        source.units = lambda: units
        index_source(source, memo=memo)
        assert index_source(source, memo=memo).num_units_read == 1

    def test_a_vanished_source_is_an_error(self, config, root):
        source = open_source(config)
        units = source.units()
        delete(root)
        with pytest.raises(SourceError):
            list(source.read(units[0]))
        with pytest.raises(SourceError):
            open_source(config).units()
