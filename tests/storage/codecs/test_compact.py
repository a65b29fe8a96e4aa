"""The compact codec: classes as a set, probabilities on a square-root grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import codecs
from storage.codecs import RankedLabels
from storage.codecs.compact import grid_levels
from storage.errors import FormatError
from storage.specs import QUALITY_CAP, CompactCodec, SoftLabelsSpec
from tests.contracts.codec_contract import CodecContract, check_rows
from tests.storage.rows import SHAPES, make_rows


def on_grid(mass, *, levels):
    """Level of a probability, one at a time in double precision; None where rounding may fall either way."""
    exact = levels * math.sqrt(mass)
    return None if abs(exact - math.floor(exact) - 0.5) < 1e-4 else round(exact)


def check_grid(rows, found, *, spec):
    for row in range(len(rows)):
        kept = found.probs[row] > 0
        num_kept = int(kept.sum())
        assert kept[:num_kept].all()  # padding comes last
        assert (np.diff(found.class_ids[row][kept]) > 0).all()
        probs = dict(zip(rows.class_ids[row].tolist(), np.exp(rows.log_probs[row].astype(np.float64)).tolist(), strict=True))
        levels = {class_id: on_grid(prob, levels=spec.codec.levels) for class_id, prob in probs.items()}
        rest = math.exp(rows.log_rest[row]) + sum(prob for class_id, prob in probs.items() if levels[class_id] == 0)
        rest_level = on_grid(min(rest, 1.0), levels=spec.codec.levels)
        if None in levels.values() or rest_level is None or 0 < rest < 1e-35:
            continue
        expected = {class_id: level for class_id, level in sorted(levels.items()) if level}
        assert found.class_ids[row][kept].tolist() == list(expected)
        rest_level = max(rest_level, 1 if rest else 0)
        mass = sum(level**2 for level in expected.values()) + rest_level**2
        assert found.probs[row][kept] == pytest.approx([level**2 / mass for level in expected.values()], rel=1e-6)
        assert found.rest[row] == pytest.approx(rest_level**2 / mass, rel=1e-6)


class TestContract(CodecContract):
    def codecs(self):
        return st.builds(CompactCodec, levels=st.just(255) | st.integers(1, 255))

    def finest(self):
        return CompactCodec()

    def kl_bound(self, spec):
        # Of S sqrt(p) = a stored as q, a^2 log(a^2 / q^2) + q^2 - a^2 is at most 0.575 for q >= 1 and at most 1 for the rest;
        # a class that is dropped has a < 0.5 and is no further than log(classes) from its share of the rest.
        return (spec.max_entries + 1) * (1 + 0.25 * math.log(spec.num_classes)) / spec.codec.levels**2 + 1e-6

    def may_be_missing(self, name):
        return name in ("steps1", "steps2", "steps3")  # only as many planes as the largest step needs

    def check_selection(self, rows, found, *, spec):
        check_grid(rows, found, spec=spec)


@settings(max_examples=100)
@given(
    st.sampled_from([1, 2, 10, 254, 255, 256, 1000, 21841, 2**31 + 5, 2**32]),
    st.integers(1, 255),
    st.sampled_from(SHAPES),
    st.integers(0, 2**32 - 1),
)
def test_quality_levels(num_classes, levels, shape, seed):
    spec = SoftLabelsSpec(num_classes=num_classes, k=None, codec=CompactCodec(levels=levels))
    assert spec.max_entries == min(QUALITY_CAP, num_classes)
    rows = make_rows(np.random.default_rng(seed), num_rows=5, num_classes=num_classes, entries=spec.max_entries, shape=shape)
    found = codecs.decode(codecs.encode(rows, spec=spec), num_rows=5, spec=spec)
    check_rows(found, num_rows=5, spec=spec)
    check_grid(rows, found, spec=spec)


def test_a_quality_level_keeps_at_most_the_cap():
    spec = SoftLabelsSpec(num_classes=1000, k=None, codec=CompactCodec())
    rows = make_rows(np.random.default_rng(0), num_rows=3, num_classes=1000, entries=QUALITY_CAP, shape="flat")
    found = codecs.decode(codecs.encode(rows, spec=spec), num_rows=3, spec=spec)
    assert (found.probs > 0).sum(axis=1).tolist() == [QUALITY_CAP] * 3


@pytest.mark.parametrize("k", [5, 300, None])
def test_rows_that_keep_nothing_are_all_rest(k):
    spec = SoftLabelsSpec(num_classes=1000, k=k, codec=CompactCodec(levels=3))
    flat = make_rows(np.random.default_rng(0), num_rows=4, num_classes=1000, entries=spec.max_entries, shape="flat")
    found = codecs.decode(codecs.encode(flat, spec=spec), num_rows=4, spec=spec)
    assert found.class_ids.shape == found.probs.shape == (4, 0)
    assert found.rest.tolist() == [1.0] * 4
    hot = make_rows(np.random.default_rng(0), num_rows=4, num_classes=1000, entries=spec.max_entries, shape="one_hot")
    mixed = RankedLabels(
        class_ids=flat.class_ids,
        log_probs=np.where(np.arange(4)[:, None] == 2, hot.log_probs, flat.log_probs),
        log_rest=np.where(np.arange(4) == 2, hot.log_rest, flat.log_rest),
    )
    found = codecs.decode(codecs.encode(mixed, spec=spec), num_rows=4, spec=spec)
    assert found.probs.tolist() == [[0], [0], [1], [0]]
    assert found.rest.tolist() == [1, 1, 0, 1]
    assert found.class_ids[2, 0] == flat.class_ids[2, 0]


def test_bytes_are_counts_steps_levels_and_rest():
    probs = np.float64([[0.64, 0.16, 0.00001], [1.0, 0, 0], [1.0, 0, 0]])
    with np.errstate(divide="ignore"):
        rows = RankedLabels(
            class_ids=np.uint32([[700, 20, 5], [0, 1, 2], [3, 1, 2]]),
            log_probs=np.log(probs).astype(np.float32),
            log_rest=np.log(np.maximum(1 - probs.sum(axis=1), 0)).astype(np.float32),
        )
    streams = codecs.encode(rows, spec=SoftLabelsSpec(num_classes=1000, k=3, codec=CompactCodec(levels=100)))
    assert {name: stream.tolist() for name, stream in streams.items()} == {
        "counts0": [2, 1, 1],
        "steps0": [20, 680 % 256, 0, 3],
        "steps1": [0, 680 // 256, 0, 0],
        "levels": [40, 80, 100, 100],
        "rest": [45, 0, 0],
    }


def test_rows_that_are_nearly_all_full_are_stored_equally_wide():
    probs = np.tile(np.float64([0.64, 0.16, 0.04]), (3, 1))
    probs[1, 2] = 1e-5
    rows = RankedLabels(
        class_ids=np.uint32([[700, 20, 5], [7, 900, 3], [2, 1, 0]]),
        log_probs=np.log(probs).astype(np.float32),
        log_rest=np.log(1 - probs.sum(axis=1)).astype(np.float32),
    )
    spec = SoftLabelsSpec(num_classes=1000, k=3, codec=CompactCodec(levels=100))
    streams = codecs.encode(rows, spec=spec)
    assert {name: stream.tolist() for name, stream in streams.items()} == {
        "steps0": [5, 15, 680 % 256, 7, 893 % 256, 0, 0, 1, 1],
        "steps1": [0, 0, 680 // 256, 0, 893 // 256, 0, 0, 0, 0],
        "wide_levels": [20, 40, 80, 80, 40, 0, 20, 40, 80],
        "rest": [40, 45, 40],
    }
    found = codecs.decode(streams, num_rows=3, spec=spec)
    assert found.class_ids.tolist() == [[5, 20, 700], [7, 900, 900], [0, 1, 2]]
    assert (found.probs == 0).tolist() == [[False] * 3, [False, False, True], [False] * 3]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"wide_levels": [1] * 5}, "bytes of steps for 5 entries"),
        ({"wide_levels": [1] * 5, "steps0": [1] * 5}, "5 entries are no 2 rows of equally many, at most 3"),
        ({"wide_levels": [1] * 8, "steps0": [1] * 8}, "8 entries are no 2 rows of equally many, at most 3"),
        ({"steps0": [255, 255, 255, 255, 255, 235]}, "class id 765 is outside the 700 classes"),
        ({"steps1": [0, 128, 0, 0, 0, 0]}, "a step between classes is above the 700 classes"),
        ({"steps1": [0] * 6, "steps2": [0] * 6}, "bytes of steps for 6 entries"),
        ({"wide_levels": [0] * 6, "rest": [1, 0]}, "neither kept classes nor rest"),
        ({"rest": [1]}, "1 rest masses for 2 rows"),
    ],
)
def test_impossible_values_in_equally_wide_rows_are_refused(changes, problem):
    streams = {"steps0": [1] * 6, "wide_levels": [9] * 6, "rest": [0, 0]}
    spec = SoftLabelsSpec(num_classes=700, k=3, codec=CompactCodec())
    whole = {name: np.uint8(values) for name, values in streams.items()}
    assert codecs.decode(whole, num_rows=2, spec=spec).class_ids.tolist() == [[1, 2, 3]] * 2
    with pytest.raises(FormatError, match=problem):
        codecs.decode({**whole, **{name: np.uint8(values) for name, values in changes.items()}}, num_rows=2, spec=spec)


@pytest.mark.parametrize("num_classes", [2**15, 2**15 + 1, 2**16 + 1, 2**31, 2**31 + 1, 2**32])
def test_sums_never_run_into_another_row(num_classes):
    """However large the steps, every id that comes out is a class, or the block is refused."""
    spec = SoftLabelsSpec(num_classes=num_classes, k=300, codec=CompactCodec())
    top = num_classes - 1
    ids = np.uint32([[top], [0], [top], [1], [top]])
    rows = RankedLabels(class_ids=ids, log_probs=np.zeros((5, 1), np.float32), log_rest=np.full(5, -np.inf, np.float32))
    one = spec.model_copy(update={"k": 1})
    assert codecs.decode(codecs.encode(rows, spec=one), num_rows=5, spec=one).class_ids[:, 0].tolist() == [top, 0, top, 1, top]
    num_planes = -(-top.bit_length() // 8)
    steps = {f"steps{i}": np.full(600, 127, dtype=np.uint8) for i in range(num_planes)}
    with pytest.raises(FormatError, match="outside the"):
        codecs.decode({**steps, "wide_levels": np.full(600, 9, np.uint8), "rest": np.uint8([9, 9])}, num_rows=2, spec=spec)


def test_the_grid_rounds_the_root():
    levels = np.array([0.0, 0.0019, 0.00197, 0.25, 0.5, 1.0])
    with np.errstate(divide="ignore"):
        found = grid_levels(np.log(levels).astype(np.float32)[None] * 2, levels=255)
    assert found.tolist() == [[0, 0, 1, 64, 128, 255]]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"counts0": [2, 2]}, "announce 4 entries"),
        ({"counts0": [4, 0]}, "at most 4 a row"),
        ({"counts0": [3]}, "planes of"),
        ({"levels": [40, 0, 100]}, "level 0"),
        ({"steps1": [0, 255, 0]}, "above the 1000 classes"),
        ({"steps0": [0]}, "bytes of steps for 3 entries"),
        ({"counts0": [3, 0], "rest": [45, 0]}, "neither kept classes nor rest"),
    ],
)
def test_impossible_values_are_refused(changes, problem):
    streams = {"counts0": [2, 1], "steps0": [20, 168, 0], "steps1": [0, 2, 0], "levels": [40, 80, 100], "rest": [45, 0]}
    spec = SoftLabelsSpec(num_classes=1000, k=3, codec=CompactCodec(levels=100))
    whole = {name: np.uint8(values) for name, values in streams.items()}
    assert codecs.decode(whole, num_rows=2, spec=spec).class_ids.tolist() == [[20, 700], [0, 0]]
    with pytest.raises(FormatError, match=problem):
        codecs.decode({**whole, **{name: np.uint8(values) for name, values in changes.items()}}, num_rows=2, spec=spec)


@pytest.mark.parametrize("num_classes", [2**24, 2**25, 2**31, 2**32])
def test_steps_that_run_round_are_refused(num_classes):
    spec = SoftLabelsSpec(num_classes=num_classes, k=3, codec=CompactCodec())
    num_planes = 3 if num_classes == 2**24 else 4
    steps = {f"steps{i}": np.full(3, 255, dtype=np.uint8) for i in range(num_planes)}
    streams = {"counts0": np.uint8([3]), "levels": np.uint8([9, 9, 9]), "rest": np.uint8([9]), **steps}
    with pytest.raises(FormatError, match="above the|outside the"):
        codecs.decode(streams, num_rows=1, spec=spec)
