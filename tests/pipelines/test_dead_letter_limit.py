"""Counting dead rows of a run takes a small share of a worker's time, however many there are."""

from __future__ import annotations

import time

import pytest

from pipelines import dead_letter_limit
from pipelines.dead_letter_limit import DeadLetterLimit
from storage.cache import Cache
from storage.errors import DeadLetterLimitError
from storage.filesystem import Store
from storage.parts import DeadLetter, Extent, PartRecord, PartStatistics
from storage.specs import PartSpec

REQUEST = "a" * 64


def record(number):
    """Of a part of ten samples, one of which is dead."""
    part = PartSpec(request=REQUEST, unit_digest=f"{number:032x}{'0' * 32}", first_view=0, num_views=1)
    extent = Extent(offset=512, num_bytes=100, checksum="0" * 16)
    return PartRecord(
        part=part,
        unit_name=f"unit{number}",
        num_samples=10,
        tar_name=f"{part.name}.{'0' * 16}.tar",
        tar_bytes=4096,
        tar_sha256="0" * 64,
        samples=extent,
        class_means=extent,
        blocks=(),
        dead_letters=(DeadLetter(key="k", position=0, view=None, stage="decode", reason="no picture"),),
        statistics=PartStatistics(num_rows=9),
        provenance={},
    )


@pytest.fixture
def listings(monkeypatch):
    """How often the dead rows of a run were listed."""
    found, names = [], Store.names

    def listed(self, prefix):
        found.append(prefix)
        return names(self, prefix)

    monkeypatch.setattr(Store, "names", listed)
    return found


def test_a_limit_is_met_at_once_while_counting_is_quick(tmp_path, listings):
    cache, limit = Cache.at(str(tmp_path)), DeadLetterLimit(share=0.03, num_rows={REQUEST: 100})
    for number in range(3):
        limit.check(cache, run="runs/r", record=record(number))
    with pytest.raises(DeadLetterLimitError, match="4 of 100 rows have no label"):
        limit.check(cache, run="runs/r", record=record(3))
    assert len(listings) == 4


def test_where_counting_is_slow_most_parts_are_noted_only(tmp_path, listings, monkeypatch):
    monkeypatch.setattr(dead_letter_limit, "_LONG_SECONDS", -1.0)
    monkeypatch.setattr(dead_letter_limit, "_REST", 1e6)
    cache, limit = Cache.at(str(tmp_path)), DeadLetterLimit(share=0.03, num_rows={REQUEST: 100})
    for number in range(20):
        limit.check(cache, run="runs/r", record=record(number))
    assert len(listings) == 1
    # Another worker, or the same one later, sees what was noted.
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    with pytest.raises(DeadLetterLimitError, match="21 of 100 rows have no label"):
        limit.check(cache, run="runs/r", record=record(20))
