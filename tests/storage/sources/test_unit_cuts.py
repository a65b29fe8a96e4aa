from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.sources.unit_cuts import unit_ranges


def units(keys, *, unit_size, ends="keys"):
    return [tuple(keys[place.start : place.stop]) for place in unit_ranges(keys, unit_size=unit_size, ends=ends)]


@given(st.sets(st.text(min_size=1, max_size=4), max_size=80).map(sorted), st.integers(1, 30), st.sampled_from(["count", "keys"]))
def test_units_hold_every_key_once_and_no_more_than_stated(keys, unit_size, ends):
    found = units(keys, unit_size=unit_size, ends=ends)
    assert [key for unit in found for key in unit] == keys
    least = unit_size if ends == "count" else unit_size / 4
    assert all(least <= len(unit) <= unit_size for unit in found[:-1])
    assert all(0 < len(unit) <= unit_size for unit in found[-1:])


def test_units_of_a_count_shift_behind_a_new_key():
    keys = [f"{index:04d}" for index in range(1000)]
    before = units(keys, unit_size=40, ends="count")
    assert len(set(units(sorted([*keys, "0100b"]), unit_size=40, ends="count")) - set(before)) == 24


@pytest.mark.parametrize("change", ["added", "removed"])
def test_a_key_that_comes_or_goes_changes_the_units_around_it(change):
    rng = random.Random(7)
    keys = [f"{index:05d}" for index in range(4000)]
    before = units(keys, unit_size=80)
    changed = []
    for _ in range(300):
        place = rng.randrange(len(keys))
        now = sorted([*keys, f"{keys[place]}b"]) if change == "added" else keys[:place] + keys[place + 1 :]
        changed.append(len(set(units(now, unit_size=80)) - set(before)))
    assert sum(changed) / len(changed) < 1.5
    assert max(changed) <= 8


def test_cuts_stay_what_they_are():
    keys = [f"class/{index:03d}.jpg" for index in range(60)]
    assert [len(unit) for unit in units(keys, unit_size=12)] == [10, 3, 12, 6, 7, 8, 5, 9]
