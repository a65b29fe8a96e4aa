"""A document of ten megabytes is labelled beside short ones, in memory that its tokens explain."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.text.models import save_model

_NUM_BYTES = 10_000_000
_ROOT = Path(__file__).resolve().parents[3]
_LABEL = """
import json, resource, sys
from tests.pipelines.text.labels import Bench
folder, layout, word = sys.argv[1:]
texts = ["ka lo", f"{word} " * (%d // (len(word) + 1)), "mi"]
views = {"kind": "tokens", "length": 64, "layout": layout}
targets = {"hidden": {"kind": "hidden_states", "layers": [1], "tokens": "first"}}
bench = Bench(folder, kind="masked_lm", texts=texts, views=views, targets=targets, batch_size=64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
record = bench.label()["hidden"].record
memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(json.dumps([record.num_samples, record.statistics.num_rows, len(record.dead_letters), memory]))
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("layout", "word", "most_memory"),
    [
        # The tokenizer keeps some 200 bytes of a token, two in five bytes, until the document is done.
        ("truncate", "nuba", 2_000_000_000),
        # What is no word is one token: few enough that a tiny teacher is soon done.
        ("cut", "w" * 79, 1_000_000_000),
    ],
)
def test_a_long_document_is_labelled(tmp_path, layout, word, most_memory):
    folder = save_model(tmp_path / "bert", "bert")
    command = [sys.executable, "-c", _LABEL % _NUM_BYTES, str(folder), layout, word]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    num_samples, num_rows, num_dead, memory = json.loads(done.stdout.splitlines()[-1])
    expected = 3 if layout == "truncate" else 2 + -(-(_NUM_BYTES // 80) // 62)
    assert (num_samples, num_rows, num_dead) == (expected, expected, 0)
    assert memory < most_memory
