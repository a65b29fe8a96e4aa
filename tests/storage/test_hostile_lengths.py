"""Files of some kilobytes that a stranger made ask for gigabytes and terabytes: they are refused, or taken, in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from storage.blocks import encode_block
from storage.errors import FormatError
from storage.samples import SampleTable, decode_samples, encode_samples
from storage.sources.checks import MAX_KEY_BYTES, key_problem
from tests.storage.hostile import CASES

ROOT = Path(__file__).parents[2]


def test_small_files_take_little_memory(tmp_path):
    for name, case in CASES.items():
        data = case.make()
        assert len(data) < 200_000
        (tmp_path / name).write_bytes(data)
    # Arrow's own allocator maps a gigabyte at once.
    settings = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    said = subprocess.run(
        [sys.executable, "-m", "tests.storage.hostile", str(tmp_path)], cwd=ROOT, env=settings, capture_output=True, text=True
    )
    found = dict(line.split("\t") for line in said.stdout.splitlines())
    assert sorted(found) == sorted(CASES), said.stderr
    for name, case in CASES.items():
        assert found[name].startswith("taken" if case.taken else "refused: "), (name, found[name])
        assert "malloc" not in found[name], (name, found[name])


def table(*keys):
    return SampleTable(keys=keys, labels=np.zeros(len(keys), dtype=np.int64))


def test_the_longest_keys_of_a_source_come_back():
    keys = tuple(f"{number}" + "k" * (MAX_KEY_BYTES - 1) for number in range(5))
    assert all(key_problem(key) is None for key in keys)
    assert decode_samples(encode_samples(table(*keys)), origin="here").keys == keys
    assert f"more than {MAX_KEY_BYTES}" in key_problem(keys[0] + "x")


def test_keys_that_no_reader_takes_are_not_written():
    with pytest.raises(FormatError, match="keys of 65537 bytes for 1 samples, at most 65536"):
        encode_samples(table("k" * 65537))
    assert decode_samples(encode_samples(table("k" * 65536)), origin="here").keys == ("k" * 65536,)


def test_tables_of_like_keys_are_far_from_what_is_refused():
    keys = tuple(f"{'folder/' * 30}{number:08d}.jpg" for number in range(200_000))
    data = encode_samples(table(*keys))
    assert decode_samples(data, origin="here").keys == keys
    assert len(keys) * 8 < 32 * len(data)


def test_blocks_that_no_reader_takes_are_not_written():
    with pytest.raises(FormatError, match="which no reader takes"):
        encode_block({"kind": "x"}, dict.fromkeys(("a", "b"), np.zeros(1 << 28, dtype=np.uint8)))
