"""The dense codec: log-probabilities of all classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import codecs
from storage.codecs import dense
from storage.codecs.divergence import codec_kl
from storage.errors import FormatError
from storage.specs import DenseCodec, SoftLabelsSpec
from tests.contracts.codec_contract import check_rows, check_streams_are_needed, examples
from tests.storage.rows import SHAPES, make_rows


def make_case(*, num_classes, num_rows=3, shape="peaked", seed=0):
    rows = make_rows(np.random.default_rng(seed), num_rows=num_rows, num_classes=num_classes, entries=num_classes, shape=shape)
    return rows, SoftLabelsSpec(num_classes=num_classes, k=None, codec=DenseCodec())


@examples(60)
@given(
    st.sampled_from([1, 2, 255, 256, 257, 1000, 30_522]) | st.integers(1, 500),
    st.integers(0, 5),
    st.sampled_from(SHAPES),
    st.integers(0, 2**32 - 1),
)
def test_all_classes_come_back_in_their_order(num_classes, num_rows, shape, seed):
    rows, spec = make_case(num_classes=num_classes, num_rows=num_rows, shape=shape, seed=seed)
    streams = codecs.encode(rows, spec=spec)
    assert {name: len(stream) for name, stream in streams.items()} == codecs.stream_lengths(num_rows, spec=spec)
    found = codecs.decode(streams, num_rows=num_rows, spec=spec)
    check_rows(found, num_rows=num_rows, spec=spec)
    assert (found.class_ids == np.arange(num_classes)).all()
    assert (found.probs > 0).all()
    assert (found.rest == 0).all()
    exact = np.exp(rows.log_probs.astype(np.float64))
    magnitudes = np.where(exact > 1e-30, np.abs(rows.log_probs), 0)
    stored = np.take_along_axis(found.probs, rows.class_ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(stored, exact, rtol=(magnitudes.max(initial=0) + 5) * 2**-10, atol=1e-30)
    assert codec_kl(rows, found).max(initial=0) <= (math.log(num_classes) ** 2 + 2) * 2**-23 + 1e-6
    again = codecs.write(codecs.read(streams, num_rows=num_rows, spec=spec), spec=spec)
    assert all(np.array_equal(again[name], streams[name]) for name in streams)


@pytest.mark.parametrize("name", ["logs0", "logs1"])
def test_damaged_streams_are_refused(name):
    rows, spec = make_case(num_classes=40)
    streams = codecs.encode(rows, spec=spec)
    check_streams_are_needed(streams, name=name, num_rows=len(rows), spec=spec)
    with pytest.raises(FormatError, match="is NaN"):
        codecs.decode({**streams, "logs1": np.full(120, 0x7D, dtype=np.uint8)}, num_rows=3, spec=spec)
    with pytest.raises(FormatError, match="sum to less than one half"):
        codecs.decode({**streams, "logs1": np.full(120, 0x7B, dtype=np.uint8)}, num_rows=3, spec=spec)


def test_a_class_twice_in_a_row_is_refused():
    rows, spec = make_case(num_classes=4)
    rows.class_ids[1, 3] = rows.class_ids[1, 0]
    with pytest.raises(FormatError, match="ranks a class twice"):
        codecs.encode(rows, spec=spec)


def test_what_no_reader_would_take_is_not_written(monkeypatch):
    rows, spec = make_case(num_classes=40)
    monkeypatch.setattr(dense, "MAX_VALUES", 119)
    with pytest.raises(FormatError, match=r"3 rows of 40 classes .* choose target.codec.kind: threshold"):
        codecs.encode(rows, spec=spec)
