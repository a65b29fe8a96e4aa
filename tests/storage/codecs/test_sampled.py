"""The codec of drawn labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import codecs
from storage.blocks import decode_block, encode_block
from storage.codecs import DrawnLabels
from storage.codecs.divergence import codec_kl
from storage.codecs.sampled import concatenate_drawn, decode_drawn, num_shares
from storage.errors import FormatError
from storage.label_blocks import decode_label_block, encode_label_block, fill_label_block
from storage.measuring import measure
from storage.specs import CompactCodec, SampledCodec, SoftLabelsSpec, ThresholdCodec
from tests.contracts.codec_contract import check_rows, check_streams_are_needed, examples
from tests.storage.drawn import DRAWN_SHAPES, make_drawn
from tests.storage.rows import make_rows

VOCABULARIES = (1, 2, 255, 1000, 30_522, 128_256, 151_936, 262_144, 2**31, 2**31 + 5, 2**32)
CODECS = st.builds(SampledCodec, draws=st.sampled_from([1, 50, 255, 256]) | st.integers(1, 400)) | st.builds(
    ThresholdCodec, levels=st.integers(2, 20)
)


def spec_of(num_classes, codec):
    return SoftLabelsSpec(num_classes=num_classes, k=None, codec=codec)


NUM_CLASSES = st.sampled_from(VOCABULARIES) | st.integers(1, 3000)


@st.composite
def cases(draw, num_classes=NUM_CLASSES, min_rows=0):
    spec = spec_of(draw(num_classes), draw(CODECS))
    rows = make_drawn(
        np.random.default_rng(draw(st.integers(0, 2**32 - 1))),
        num_rows=draw(st.integers(min_rows, 9)),
        num_classes=spec.num_classes,
        shares=num_shares(spec.codec),
        shape=draw(st.sampled_from(DRAWN_SHAPES)),
    )
    return rows, spec


def assert_equal(one, other):
    for name in ("offsets", "class_ids", "counts"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


@examples(150)
@given(cases())
def test_rows_come_back(case):
    rows, spec = case
    streams = codecs.encode(rows, spec=spec)
    limits = codecs.stream_lengths(len(rows), spec=spec)
    assert all(stream.dtype == np.uint8 and len(stream) <= limits[name] for name, stream in streams.items())
    assert_equal(decode_drawn(streams, num_rows=len(rows), spec=spec), rows)
    found = codecs.decode(streams, num_rows=len(rows), spec=spec)
    check_rows(found, num_rows=len(rows), spec=spec)
    assert (found.rest == 0).all()
    for row in range(len(rows)):
        span = slice(rows.offsets[row], rows.offsets[row + 1])
        entries = span.stop - span.start
        assert found.class_ids[row, :entries].tolist() == rows.class_ids[span].tolist()
        expected = rows.counts[span] / num_shares(spec.codec)
        np.testing.assert_allclose(found.probs[row, :entries], expected, rtol=1e-6)
        assert not found.probs[row, entries:].any()
    stored = codecs.read(streams, num_rows=len(rows), spec=spec)
    again = codecs.write(stored, spec=spec)
    assert list(again) == list(streams)
    assert all(np.array_equal(again[name], streams[name]) for name in streams)


@examples(40)
@given(cases(min_rows=1), st.data())
def test_damaged_streams_are_refused(case, data):
    rows, spec = case
    streams = codecs.encode(rows, spec=spec)
    name = data.draw(st.sampled_from(sorted(streams)))
    check_streams_are_needed(streams, name=name, num_rows=len(rows), spec=spec)


@examples(200)
@given(cases(num_classes=st.sampled_from([3, 1000, 2**32]), min_rows=1), st.data())
def test_any_other_bytes_give_rows_or_an_error_of_ours(case, data):
    rows, spec = case
    streams = codecs.encode(rows, spec=spec)
    name = data.draw(st.sampled_from([name for name in sorted(streams) if len(streams[name])]))
    broken = streams[name].copy()
    broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = codecs.decode({**streams, name: broken}, num_rows=len(rows), spec=spec)
    except FormatError:
        return
    check_rows(found, num_rows=len(rows), spec=spec)


@pytest.mark.parametrize("codec", [SampledCodec(draws=65535), ThresholdCodec(levels=255)])
@pytest.mark.parametrize("num_classes", [3, 2**32])
def test_the_most_shares(codec, num_classes):
    spec = spec_of(num_classes, codec)
    rng = np.random.default_rng(0)
    for shape in DRAWN_SHAPES:
        rows = make_drawn(rng, num_rows=2, num_classes=num_classes, shares=num_shares(codec), shape=shape)
        assert_equal(decode_drawn(codecs.encode(rows, spec=spec), num_rows=2, spec=spec), rows)


def test_bytes_are_entries_steps_and_counts():
    rows = DrawnLabels(offsets=np.int64([0, 3, 4]), class_ids=np.uint32([0, 6, 999]), counts=np.uint32([2, 7, 1]))
    rows = concatenate_drawn([replace(rows, offsets=np.int64([0, 3])), one_row([4], [10])])
    streams = codecs.encode(rows, spec=spec_of(1000, SampledCodec(draws=10)))
    # Steps 1, 6, 993 and 5: below their leading bits 0 bits, 10, 111100001 and 01; from the lowest bit up 2 + 9 + 2 bits.
    bits = 0b10 | 0b111100001 << 2 | 0b01 << 11
    assert {name: stream.tolist() for name, stream in streams.items()} == {
        "entries0": [3, 1],
        "step_lengths": [0, 2, 9, 2],
        "step_bits": [bits & 255, bits >> 8],
        "counts0": [2, 7, 1, 10],
    }


def one_row(class_ids, counts):
    return DrawnLabels(offsets=np.int64([0, len(class_ids)]), class_ids=np.uint32(class_ids), counts=np.uint32(counts))


@pytest.mark.parametrize(
    ("class_ids", "counts", "problem"),
    [
        ([3, 7], [4, 6], "class id 7 is outside the 7 classes"),
        ([3, 2], [4, 6], "do not ascend"),
        ([3, 3], [4, 6], "do not ascend"),
        ([2, 3], [4, 7], "sum to 11, of 10 draws"),
        ([2, 3], [0, 10], "at least once"),
        ([], [], "without any class"),
    ],
)
def test_what_was_not_drawn_is_refused(class_ids, counts, problem):
    spec = spec_of(7, SampledCodec(draws=10))
    codecs.encode(one_row([2, 3], [4, 6]), spec=spec)
    with pytest.raises(FormatError, match=problem):
        codecs.encode(one_row(class_ids, counts), spec=spec)


def test_offsets_that_do_not_fit_are_refused():
    rows = one_row([2, 3], [4, 6])
    for wrong in (
        replace(rows, offsets=np.int64([0, 1])),
        replace(rows, counts=np.uint32([10])),
        replace(rows, offsets=np.int64([1, 2])),
    ):
        with pytest.raises(FormatError, match="rows that end at"):
            codecs.encode(wrong, spec=spec_of(7, SampledCodec(draws=10)))


def test_ranked_rows_are_not_drawn_and_drawn_ones_not_ranked():
    ranked = make_rows(np.random.default_rng(0), num_rows=2, num_classes=9, entries=9, shape="peaked")
    with pytest.raises(FormatError, match="codec sampled stores drawn ones"):
        codecs.encode(ranked, spec=spec_of(9, SampledCodec()))
    with pytest.raises(FormatError, match="codec compact stores the most probable"):
        codecs.encode(one_row([2], [50]), spec=SoftLabelsSpec(num_classes=9, k=3, codec=CompactCodec()))


@examples(40)
@given(cases(min_rows=1), st.data())
def test_taken_and_joined_rows_are_those_rows(case, data):
    rows, _ = case
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8)), dtype=np.int64)
    taken = rows.take(chosen)
    assert len(taken) == len(chosen)
    if len(chosen):
        assert_equal(concatenate_drawn([rows.take(np.array([row])) for row in chosen]), taken)
    for place, row in enumerate(chosen):
        for mine, theirs in ((taken.class_ids, rows.class_ids), (taken.counts, rows.counts)):
            np.testing.assert_array_equal(
                mine[taken.offsets[place] : taken.offsets[place + 1]], theirs[rows.offsets[row] : rows.offsets[row + 1]]
            )


def test_what_storing_did_to_drawn_rows():
    rows = concatenate_drawn([one_row([2, 3, 5], [2, 4, 4]), one_row([6], [10]), one_row([0, 1], [9, 1])])
    spec = spec_of(7, SampledCodec(draws=10))
    stored = codecs.decode(codecs.encode(rows, spec=spec), num_rows=3, spec=spec)
    assert rows.top_ids().tolist() == [3, 6, 0]
    assert codec_kl(rows, stored).tolist() == [0, 0, 0]
    found = measure(rows, stored, labels=np.int64([3, -1, 1]), target=spec)
    assert (found.num_rows, found.num_labelled_rows, found.num_agreeing_rows) == (3, 2, 1)
    assert (found.codec_kl_sum, found.codec_kl_max, found.entries_sum, found.mass_kept_sum) == (0, 0, 6, 3)
    assert (found.num_empty_rows, found.num_full_rows) == (0, 0)


def test_a_block_of_pictures_is_filled_with_drawn_rows():
    spec = spec_of(70_000, ThresholdCodec(levels=6))
    rows = make_drawn(np.random.default_rng(1), num_rows=5, num_classes=70_000, shares=36, shape="peaked")
    digests = np.zeros(5, dtype=np.uint64)

    def block(present):
        return encode_label_block(
            rows.take(np.flatnonzero(present)),
            spec=spec,
            view=0,
            first_sample=0,
            present=np.array(present),
            key_hash=1,
            view_digests=digests,
        )

    whole = block([True] * 5)
    lacking = block([True, False, True, False, True])
    filled = fill_label_block(lacking, rows.take(np.array([1, 3])), offsets=np.array([1, 3]), view_digests=digests, origin="here")
    assert filled == whole
    found = decode_label_block(whole, origin="here")
    check_rows(found.soft_labels, num_rows=5, spec=spec)


def test_streams_survive_a_block():
    spec = spec_of(151_936, SampledCodec())
    rows = make_drawn(np.random.default_rng(2), num_rows=300, num_classes=151_936, shares=50, shape="peaked")
    data = encode_block({"kind": "x"}, codecs.encode(rows, spec=spec))
    limits = codecs.stream_lengths(300, spec=spec)
    _, streams = decode_block(data, origin="here", read_header=lambda header: (header, limits))
    assert_equal(decode_drawn(streams, num_rows=300, spec=spec), rows)
