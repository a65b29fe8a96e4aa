"""Blocks read one after the other do not fetch their memory from the system each time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_READ = """
import resource
import numpy as np
from storage.codecs import RankedLabels
from storage.label_blocks import decode_label_block, encode_label_block
from storage.specs import ExactCodec, SoftLabelsSpec

num_rows, k = 4000, 100
spec = SoftLabelsSpec(num_classes=1000, k=k, codec=ExactCodec())
rows = RankedLabels(
    class_ids=np.tile(np.arange(k, dtype=np.uint32), (num_rows, 1)),
    log_probs=np.full((num_rows, k), np.log(1 / (k + 1)), dtype=np.float32),
    log_rest=np.full(num_rows, np.log(1 / (k + 1)), dtype=np.float32),
)
present, digests = np.ones(num_rows, dtype=np.bool_), np.zeros(num_rows, dtype=np.uint64)
block = encode_label_block(rows, spec=spec, view=0, first_sample=0, present=present, key_hash=0, view_digests=digests)

def faults(num_blocks):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(num_blocks):
        decode_label_block(block, origin="test")
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(5)
print(faults(20) / 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators decide for themselves")
def test_a_block_is_read_into_memory_that_the_last_one_left():
    found = subprocess.run([sys.executable, "-c", _READ], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 20, "pages a block; its two arrays alone are 780"
