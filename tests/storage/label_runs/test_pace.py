"""Rows a second of rows that come in lumps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.label_runs.pace import Pace


def paced(counts, *, window_seconds=300.0):
    pace = Pace(window_seconds=window_seconds)
    for at, num_rows in counts:
        pace.add(at=at, num_rows=num_rows)
    return pace.rows_per_second()


@pytest.mark.parametrize("counts", [[], [(0.0, 0)], [(0.0, 5), (1.0, 5), (9.0, 5)]])
def test_there_is_no_pace_before_anything_came(counts):
    assert paced(counts) is None


@given(
    start=st.integers(0, 10**6),
    rows=st.integers(1, 10**4),
    gap=st.integers(1, 60),
    looks=st.integers(1, 7),
    arrivals=st.integers(1, 20),
)
def test_even_lumps_have_their_own_pace_however_often_one_looks(start, rows, gap, looks, arrivals):
    counts = [
        (number * gap + look * gap / looks, start + number * rows) for number in range(arrivals + 1) for look in range(looks)
    ]
    assert paced(counts) == pytest.approx(rows / gap)


def test_the_pace_is_that_of_the_last_minutes():
    slow = [(float(second), second // 10) for second in range(0, 1000, 10)]
    fast = [(1000.0 + second, 100 + 50 * second) for second in range(1, 61)]
    assert paced([*slow, *fast], window_seconds=50.0) == pytest.approx(50)
    assert paced([*slow, *fast], window_seconds=10_000.0) < 5


def test_rows_that_do_not_come_slow_it_down():
    steady = [(float(second), 10 * second) for second in range(11)]
    assert paced(steady) == pytest.approx(10)
    assert paced([*steady, (12.0, 100)]) == pytest.approx(10)
    assert paced([*steady, (100.0, 100)]) == pytest.approx(1)


def test_units_longer_than_the_window_still_have_a_pace():
    assert paced([(0.0, 0), (1000.0, 100), (2000.0, 200), (3000.0, 300)], window_seconds=300.0) == pytest.approx(0.1)


def test_a_pace_that_is_kept_for_days_stays_small():
    pace = Pace(window_seconds=300.0)
    for second in range(10_000):
        pace.add(at=float(second), num_rows=second)
    assert len(pace._arrivals) < 310
