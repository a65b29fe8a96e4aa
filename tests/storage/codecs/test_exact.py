"""The exact codec: classes by rank, float16 log-probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import strategies as st

from storage import codecs
from storage.codecs import RankedLabels
from storage.errors import FormatError
from storage.specs import ExactCodec, SoftLabelsSpec
from tests.contracts.codec_contract import CodecContract


class TestContract(CodecContract):
    def codecs(self):
        return st.just(ExactCodec())

    def finest(self):
        return ExactCodec()

    def kl_bound(self, spec):
        # A float16 of magnitude m is off by at most m 2^-11; KL is half the mean square of that, E[m^2] at most log(classes)^2 + 2.
        return (math.log(spec.num_classes) ** 2 + 2) * 2**-23 + 1e-6

    def check_selection(self, rows, found, *, spec):
        assert np.array_equal(found.class_ids, rows.class_ids)
        assert (np.diff(found.probs, axis=1) <= 0).all()
        for stored, log_probs in ((found.probs, rows.log_probs), (found.rest, rows.log_rest)):
            magnitudes = np.abs(log_probs.astype(np.float64))
            held = magnitudes < 80  # float32 holds nothing much smaller
            assert (
                np.abs(np.log(stored[held].astype(np.float64)) - log_probs[held]).max(initial=0)
                <= (magnitudes[held].max(initial=0) + np.log(spec.num_classes) + 2) * 2**-11
            )
            assert (stored[~held] < 1e-34).all()


def encode(log_probs, *, log_rest):
    rows = RankedLabels(
        class_ids=np.arange(len(log_probs), dtype=np.uint32)[None],
        log_probs=np.float32([log_probs]),
        log_rest=np.float32([log_rest]),
    )
    spec = SoftLabelsSpec(num_classes=9, k=len(log_probs), codec=ExactCodec())
    return codecs.encode(rows, spec=spec), spec


def test_bytes_are_deltas_of_magnitudes_rank_by_rank():
    rows = RankedLabels(
        class_ids=np.uint32([[300, 2], [5, 999]]),
        log_probs=np.log(np.float32([[0.5, 0.25], [0.5, 0.5]])),
        log_rest=np.log(np.float32([0.25, 1e-30])),
    )
    streams = codecs.encode(rows, spec=SoftLabelsSpec(num_classes=1000, k=2, codec=ExactCodec()))
    assert {name: stream.tolist() for name, stream in streams.items()} == {
        "ids0": [300 % 256, 2, 5, 999 % 256],
        "ids1": [0b11_00_00_01],
        "deltas0": [0x8C, 0x8C, 0x00, 0x00],
        "deltas1": [0x39, 0x39, 0x04, 0x00],
        "rest0": [0x8C, 0x51],
        "rest1": [0x3D, 0x54],
    }


def test_classes_without_any_probability_come_back_as_zero():
    streams, spec = encode([0.0, -np.inf, -np.inf], log_rest=-np.inf)
    found = codecs.decode(streams, num_rows=1, spec=spec)
    assert found.probs.tolist() == [[1.0, 0.0, 0.0]]
    assert found.rest.tolist() == [0.0]
    assert found.class_ids.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("stream", "values", "problem"),
    [
        ("deltas1", [0x7E, 0x00], "is NaN"),
        ("rest1", [0x7D], "is NaN"),
        ("deltas1", [0x70, 0x00], "sum to less than one half"),
        ("ids0", [0xF9], "class id 15 is outside the 9 classes"),
    ],
)
def test_impossible_values_are_refused(stream, values, problem):
    streams, spec = encode([-0.5, -1.5], log_rest=np.log(1 - np.exp(-0.5) - np.exp(-1.5)))
    broken = np.uint8(values)
    with pytest.raises(FormatError, match=problem):
        codecs.decode({**streams, stream: broken}, num_rows=1, spec=spec)
