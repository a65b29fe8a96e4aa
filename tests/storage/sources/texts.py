"""Documents for tests of sources of texts."""

from __future__ import annotations

import gzip

import pytest
import zstandard

from storage.config import DelimitedConfig, JsonlConfig, TextConfig
from storage.errors import SampleError
from storage.sources import NO_LABEL, open_source
from tests.contracts.source_contract import NUM_CLASSES, NUM_ITEMS, Item, write_file

WORDS = ("plain", 'a "quoted" word', "Käse, 猫 and 🐈", 'half a quote: 5" pipe', "back\\slash \\n", "it's", " spaces  inside ")


def text_items(*, labelled=True):
    """Items whose texts stay on one line and hold no tabs."""
    return [
        Item(
            name=f"s{index:03d}",
            label=index * NUM_CLASSES // NUM_ITEMS if labelled else NO_LABEL,
            data=f"{WORDS[index % len(WORDS)]}, text {index}".encode(),
        )
        for index in range(NUM_ITEMS)
    ]


def zstd(data):
    """Two frames behind each other, as tools that append write them."""
    half = len(data) // 2
    return zstandard.compress(data[:half]) + zstandard.compress(data[half:])


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


CONFIGS = {"text": TextConfig, "jsonl": JsonlConfig, "delimited": DelimitedConfig}


def source(path, kind="text", **kwargs):
    return open_source(CONFIGS[kind](kind=kind, path=str(path), **kwargs))


def written(tmp_path, name, data, kind="text", **kwargs):
    write_file(f"{tmp_path}/{name}", data)
    return source(tmp_path / name, kind, **kwargs)


def samples_of(opened):
    """Every sample, after checking that random access tells the same."""
    found = []
    for unit in opened.units():
        samples = list(opened.read(unit))
        reader = opened.open(unit)
        assert list(reader.keys) == [sample.key for sample in samples]
        assert reader.labels.tolist() == [sample.label for sample in samples]
        for sample in samples:
            if sample.error is None:
                assert reader.read(sample.position) == sample.data
            else:
                with pytest.raises(SampleError, match="."):
                    reader.read(sample.position)
        reader.close()
        found += samples
    return found
