"""Wider labels as a narrower target asks for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import codecs
from storage.features import FeatureRows
from storage.narrowing import narrow, narrow_values, why_not_narrower
from storage.soft_labels import SoftLabels
from storage.specs import (
    AttentionSpec,
    CompactCodec,
    DenseCodec,
    ExactCodec,
    Float16Codec,
    HiddenStatesSpec,
    Int8Codec,
    SampledCodec,
    SoftLabelsSpec,
)
from tests.storage.rows import SHAPES, make_rows

EXACT, COMPACT, DENSE = ExactCodec(), CompactCodec(), DenseCodec()


def spec(k, codec=EXACT, *, num_classes=1000, **options):
    return SoftLabelsSpec(num_classes=num_classes, k=k, codec=codec, **options)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (spec(100), spec(100)),
        (spec(100), spec(10)),
        (spec(100), spec(10, COMPACT)),
        (spec(100, COMPACT), spec(100, CompactCodec(levels=64))),
        (spec(None, COMPACT), spec(10, COMPACT)),
        (spec(None, COMPACT), spec(255, COMPACT)),
        (spec(None, COMPACT), spec(None, CompactCodec(levels=48))),
        (spec(None, DENSE), spec(10)),
        (spec(None, DENSE), spec(1000)),
        (spec(None, DENSE), spec(10, COMPACT)),
        (spec(None, DENSE), spec(None, COMPACT)),
    ],
)
def test_more_serves_less(stored, asked):
    assert why_not_narrower(stored, asked=asked) is None


@pytest.mark.parametrize(
    ("stored", "asked", "reason"),
    [
        (spec(10), spec(100), "target.k is 10, less than 100"),
        (spec(100, COMPACT), spec(10), "its compact codec has rounded the probabilities that the exact one keeps"),
        (spec(10, CompactCodec(levels=64)), spec(10, COMPACT), "target.codec.levels is 64, fewer than 255"),
        (spec(100), spec(None, COMPACT), "it keeps the top 100 classes, not every one above a level"),
        (spec(None, COMPACT), spec(256, COMPACT), "it keeps at most 255 classes a row, fewer than k 256"),
        (spec(9, num_classes=10), spec(9, num_classes=11), "target.num_classes is 10, not 11"),
        (spec(9, generation_temperature=2.0), spec(9), "target.generation_temperature is 2.0, not 1.0"),
        (spec(None, DENSE, num_classes=10), spec(9, num_classes=11), "target.num_classes is 10, not 11"),
        (
            spec(10, num_classes=10),
            spec(None, DENSE, num_classes=10),
            "target.codec is {'kind': 'exact', 'version': 1}, which serves dense only if it is the same",
        ),
    ],
)
def test_less_does_not_serve_more_and_says_why(stored, asked, reason):
    assert why_not_narrower(stored, asked=asked) == reason


def stored_rows(seed, *, target, shape, num_rows=7):
    rows = make_rows(
        np.random.default_rng(seed), num_rows=num_rows, num_classes=target.num_classes, entries=target.max_entries, shape=shape
    )
    return rows, codecs.decode(codecs.encode(rows, spec=target), num_rows=num_rows, spec=target)


def as_dicts(rows: SoftLabels):
    return [
        {int(i): float(p) for i, p in zip(ids, probs, strict=True) if p > 0}
        for ids, probs in zip(rows.class_ids, rows.probs, strict=True)
    ]


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 40), st.sampled_from([EXACT, COMPACT]), st.sampled_from(SHAPES))
def test_the_most_probable_are_kept_and_the_rest_takes_the_others(seed, stored_k, asked_k, codec, shape):
    _, rows = stored_rows(seed, target=spec(stored_k, codec, num_classes=50), shape=shape)
    found = narrow(rows, asked=spec(asked_k, codec, num_classes=50))
    assert found.probs.shape[1] <= asked_k
    assert found.probs.dtype == found.rest.dtype == np.float32
    assert found.class_ids.dtype == rows.class_ids.dtype
    for before, after, rest_before, rest in zip(as_dicts(rows), as_dicts(found), rows.rest, found.rest, strict=True):
        assert len(after) == min(len(before), asked_k)
        assert after.items() <= before.items()
        left = sorted(set(before) - set(after))
        assert not left or max(before[i] for i in left) <= min(after.values())
        assert rest == pytest.approx(rest_before + sum(before[i] for i in left), abs=1e-6)
    used = found.probs > 0
    assert not (used[:, 1:] & ~used[:, :-1]).any()
    # What was ascending, or by rank, still is.
    order = found.class_ids.astype(np.int64) if codec == COMPACT else -found.probs
    assert (np.diff(order, axis=1)[used[:, 1:]] >= 0).all()


@given(st.integers(0, 2**20), st.sampled_from([1, 5, 20]), st.sampled_from(SHAPES))
def test_the_top_of_exact_labels_is_what_the_smaller_k_would_have_stored(seed, asked_k, shape):
    wide, narrower = spec(30, num_classes=50), spec(asked_k, num_classes=50)
    rows, stored = stored_rows(seed, target=wide, shape=shape)
    probs = np.exp(np.minimum(rows.log_probs.astype(np.float64), 0))
    with np.errstate(divide="ignore"):
        log_rest = np.log(np.exp(rows.log_rest.astype(np.float64)) + probs[:, asked_k:].sum(axis=1))
    direct_rows = codecs.RankedLabels(
        class_ids=rows.class_ids[:, :asked_k], log_probs=rows.log_probs[:, :asked_k], log_rest=log_rest.astype(np.float32)
    )
    direct = codecs.decode(codecs.encode(direct_rows, spec=narrower), num_rows=len(rows), spec=narrower)
    found = narrow(stored, asked=narrower)
    np.testing.assert_allclose(found.densify(), direct.densify(), atol=2e-3)
    assert [list(row) for row in as_dicts(found)] == [list(row) for row in as_dicts(direct)]


@given(st.integers(0, 2**20), st.sampled_from([1, 5, 50]), st.sampled_from([EXACT, COMPACT]), st.sampled_from(SHAPES))
def test_the_top_of_dense_labels_is_what_the_asked_k_would_have_stored(seed, asked_k, codec, shape):
    rows, stored = stored_rows(seed, target=spec(None, DENSE, num_classes=50), shape=shape)
    found = narrow(stored, asked=spec(asked_k, codec, num_classes=50))
    assert (found.probs.shape, found.class_ids.shape) == ((len(rows), asked_k), (len(rows), asked_k))
    for probs, ids, kept, mass, rest in zip(
        stored.probs, found.class_ids, found.probs, found.probs.sum(axis=1), found.rest, strict=True
    ):
        # Of equal ones the first.
        expected = sorted(np.lexsort((np.arange(50), -probs))[:asked_k].tolist())
        assert ids.tolist() == expected
        assert np.array_equal(kept, probs[expected])
        assert mass + rest == pytest.approx(1, abs=1e-5)


def test_rows_of_dense_labels_that_a_quality_level_cuts_differ_in_length():
    probs = np.full((2, 400), 0.4 / 397, dtype=np.float32)
    probs[:, 5] = 0.6 - 2 * 0.4 / 397
    probs[1] = [1.0 - 399e-9, *[1e-9] * 399]
    ids = np.tile(np.arange(400, dtype=np.int32), (2, 1))
    rows = SoftLabels(class_ids=ids, probs=probs, rest=np.zeros(2, np.float32), num_classes=400)
    found = narrow(rows, asked=spec(None, CompactCodec(levels=64), num_classes=400))
    kept = found.probs > 0
    assert kept.sum(axis=1).tolist() == [255, 1]
    assert found.class_ids[0].tolist() == list(range(255))
    np.testing.assert_allclose(found.probs.sum(axis=1) + found.rest, 1, atol=1e-5)


def test_a_quality_level_leaves_out_what_does_not_reach_half_of_one():
    probs = np.float32([[0.6, 0.0001, 0.3], [0.5, 0.4, 0.05]])
    rows = SoftLabels(class_ids=np.int32([[3, 5, 9], [0, 1, 2]]), probs=probs, rest=1 - probs.sum(axis=1), num_classes=50)
    found = narrow(rows, asked=spec(None, CompactCodec(levels=10), num_classes=50))
    assert as_dicts(found) == [{3: probs[0, 0], 9: probs[0, 2]}, {0: probs[1, 0], 1: probs[1, 1], 2: probs[1, 2]}]
    np.testing.assert_allclose(found.probs.sum(axis=1) + found.rest, 1, atol=1e-6)


def test_rows_that_need_nothing_are_not_copied():
    _, rows = stored_rows(0, target=spec(5, num_classes=50), shape="peaked")
    assert narrow(rows, asked=spec(5, num_classes=50)) is rows


def test_no_rows_and_rows_without_classes():
    none = SoftLabels(
        class_ids=np.zeros((0, 4), np.int32), probs=np.zeros((0, 4), np.float32), rest=np.zeros(0, np.float32), num_classes=9
    )
    assert len(narrow(none, asked=spec(2, num_classes=9))) == 0
    empty = SoftLabels(
        class_ids=np.zeros((3, 4), np.int32), probs=np.zeros((3, 4), np.float32), rest=np.ones(3, np.float32), num_classes=9
    )
    found = narrow(empty, asked=spec(2, num_classes=9))
    assert (found.probs.shape, found.rest.tolist()) == ((3, 0), [1, 1, 1])


HEAD = "a0" * 32


def hidden(layers, **options):
    return HiddenStatesSpec(**{"layers": layers, "tokens": "all", "width": 4, "codec": Float16Codec(), **options})


def attention(layers, vectors=("query", "key", "value"), **options):
    sizes = {"num_heads": 2, "num_key_value_heads": 1, "head_width": 3, "causal": True, "codec": Int8Codec()}
    return AttentionSpec(layers=layers, vectors=vectors, **{**sizes, **options})


PICTURE_MEAN = hidden((3,), tokens="mean", mean_version=2)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (hidden((0, 3, 6)), hidden((0, 3, 6))),
        (hidden((0, 3, 6)), hidden((3,))),
        (hidden((3, 6), head_sha256=HEAD), hidden((6,), head_sha256=HEAD)),
        (hidden((3, 6), head_sha256=HEAD), hidden((3, 6))),
        (hidden((3, 6), head_sha256=HEAD), hidden((3,))),
        (attention((1, 2)), attention((2,))),
        (attention((1, 2)), attention((1, 2), ("query", "key"))),
        (attention((1, 2)), attention((1,), ("value",))),
        (hidden((3, 6)), hidden((6,), codec=Int8Codec())),
        (hidden((3, 6)), hidden((3, 6), codec=Int8Codec(group=8))),
        (attention((1,), codec=Float16Codec()), attention((1,), ("key",))),
        (PICTURE_MEAN, PICTURE_MEAN.model_copy(update={"codec": Int8Codec()})),
    ],
)
def test_more_vectors_serve_fewer_and_are_not_copied(stored, asked):
    assert why_not_narrower(stored, asked=asked) is None
    rows = FeatureRows(tensors={name: np.full((3, width), index) for index, (name, width) in enumerate(stored.tensors.items())})
    found = narrow_values(rows, stored=stored, asked=asked)
    assert list(found.tensors) == list(asked.tensors)
    assert all(found.tensors[name] is rows.tensors[name] for name in asked.tensors)
    assert (found is rows) == (stored == asked)


@pytest.mark.parametrize(
    ("stored", "asked", "reason"),
    [
        (hidden((0, 3)), hidden((0, 6, 9)), "target.layers lacks 6, 9"),
        (hidden((0, 3)), hidden((3,), tokens="mean"), "target.tokens is 'all', not 'mean'"),
        (hidden((0, 3), codec=Int8Codec()), hidden((3,)), "target.codec is "),
        (hidden((3,), codec=Int8Codec(group=8)), hidden((3,), codec=Int8Codec()), "target.codec is "),
        (hidden((3,), tokens="mean"), PICTURE_MEAN, "target.mean_version is None, not 2"),
        (PICTURE_MEAN, hidden((3,), tokens="mean"), "target.mean_version is 2, not None"),
        (PICTURE_MEAN, hidden((3,)), "target.tokens is 'mean', not 'all'"),
        (hidden((6,)), hidden((6,), head_sha256=HEAD), f"target.head_sha256 is None, not '{HEAD}'"),
        (hidden((3, 6), head_sha256=HEAD), hidden((3,), head_sha256=HEAD), "its head reads layer 6, not 3"),
        (hidden((1,)), attention((1,)), "target.kind is hidden_states, not attention"),
        (hidden((1,)), spec(3), "target.kind is hidden_states, not soft_labels"),
        (attention((1,), ("query",)), attention((1,)), "target.vectors lacks key, value"),
        (attention((1,)), attention((1,), causal=False), "target.causal is True, not False"),
    ],
)
def test_other_vectors_do_not_serve_and_say_why(stored, asked, reason):
    assert (why_not_narrower(stored, asked=asked) or "").startswith(reason)


def test_soft_labels_are_narrowed_as_any_target_is():
    stored, asked = spec(5), spec(2)
    _, rows = stored_rows(0, target=stored, shape="peaked")
    found, expected = narrow_values(rows, stored=stored, asked=asked), narrow(rows, asked=asked)
    assert found.probs.shape[1] == 2
    assert np.array_equal(found.class_ids, expected.class_ids)
    assert np.array_equal(found.probs, expected.probs)
    drawn = SoftLabelsSpec(num_classes=10, k=None, codec=SampledCodec())
    assert narrow_values(rows, stored=drawn, asked=drawn) is rows
