"""How far clocks are apart, from what is certain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.doctor.clocks import Offset, offset_by_message, offset_to_store, offset_to_submitter
from pipelines.doctor.judge_reach import judge_clocks
from pipelines.doctor.report import ClockReading
from tests.pipelines.doctor.specimens import heard, report

skews = st.floats(-10_000, 10_000)
durations = st.floats(0, 60)


def reading(*, true_time, skew, store_skew, seconds, resolution):
    """What a process and a store note of one write that takes `seconds`, by clocks that are off."""
    stored = true_time + seconds / 2 + store_skew
    return ClockReading(
        before=true_time + skew,
        stored=stored // resolution * resolution,
        resolution_seconds=resolution,
        after=true_time + seconds + skew,
    )


@given(skew=skews, store_skew=skews, seconds=durations, resolution=st.sampled_from([0.25, 1.0]))
def test_the_true_offset_to_the_store_is_never_excluded(skew, store_skew, seconds, resolution):
    found = offset_to_store(
        reading(true_time=1_700_000_000.0, skew=skew, store_skew=store_skew, seconds=seconds, resolution=resolution)
    )
    assert found.least - 1e-5 <= skew - store_skew <= found.most + 1e-5
    assert found.doubt <= (seconds + resolution) / 2 + 1e-5


@given(worker=skews, submitter=skews, store=skews, seconds=durations, wait=durations, through_store=st.booleans())
def test_the_true_offset_of_a_worker_is_never_excluded(worker, submitter, store, seconds, wait, through_store):
    start = 1_700_000_000.0
    clocks = {}
    if through_store:
        for name, skew, at in (("worker", worker, start + wait), ("submitter", submitter, start)):
            clocks[name] = reading(true_time=at, skew=skew, store_skew=store, seconds=seconds, resolution=1.0)
    found = offset_to_submitter(
        worker=clocks.get("worker"),
        submitter=clocks.get("submitter"),
        said=start + wait + seconds + worker,
        asked=start + submitter,
        heard=start + wait + seconds + 1 + submitter,
    )
    assert found.least - 1e-5 <= worker - submitter <= found.most + 1e-5
    assert found.certain_seconds <= abs(worker - submitter) + 1e-5


def test_a_message_bounds_a_clock_from_both_sides():
    assert offset_by_message(105.0, asked=100.0, heard=103.0) == Offset(least=2.0, most=5.0)


def test_a_clock_that_was_set_in_between_widens_what_is_known():
    assert Offset(least=0, most=1).narrowed(Offset(least=5, most=6)) == Offset(least=0, most=6)
    assert Offset(least=0, most=5).narrowed(Offset(least=4, most=6)) == Offset(least=4, most=5)


@pytest.mark.parametrize(
    ("offset", "level", "words"),
    [
        (Offset(least=-0.5, most=0.4), "ok", "at most 0.5 s"),
        # Perhaps 40 seconds apart, perhaps not at all: no alarm without proof.
        (Offset(least=-1, most=40), "ok", "at most 40.0 s"),
        (Offset(least=7, most=9), "warning", "the clock is 8.0 s ahead of this machine's, give or take 1.0 s"),
        (Offset(least=-401, most=-399), "error", "the clock is 400.0 s behind this machine's, give or take 1.0 s"),
    ],
)
def test_clocks_are_judged_by_what_is_certain(offset, level, words):
    (found,) = judge_clocks(heard(report(7), offsets=[offset]))
    assert found.level == level
    assert words in found.message
    assert (found.places == ()) if level == "ok" else (found.places == ("a:7",) and "chrony" in found.remedy)


def test_this_machines_clock_is_held_against_the_stores():
    late = ClockReading(before=2000.0, stored=1000.0, resolution_seconds=1.0, after=2000.2)
    (found,) = judge_clocks(heard(here=report(host="submitter", clock=late)))
    assert (found.level, found.places) == ("error", ("here",))
    assert "ahead of the store's" in found.message
