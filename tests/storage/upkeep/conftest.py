"""Places and clocks that several tests of caches share."""

from __future__ import annotations

import uuid

import fsspec.implementations.memory
import pytest

from storage.upkeep import sweep
from tests.storage.upkeep.litter import SkewedClock

PLACES = ["local", "memory", pytest.param("s3", marks=pytest.mark.s3)]


@pytest.fixture(params=PLACES)
def any_url(request, tmp_path):
    match request.param:
        case "local":
            return str(tmp_path / "cache")
        case "memory":
            return f"memory://{uuid.uuid4().hex}"
        case _:
            return f"s3://{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}"


@pytest.fixture
def partials_age_at_once(monkeypatch):
    """The files of a store get no older by waiting in a test; elsewhere half-written ones are of running jobs."""
    monkeypatch.setattr(sweep, "PARTIAL_SECONDS", 0.0)


@pytest.fixture
def skewed(monkeypatch):
    """The clock of the store in memory, which its files' times come from; this machine's stays as it is."""
    monkeypatch.setattr(fsspec.implementations.memory, "datetime", SkewedClock)
    monkeypatch.setattr(SkewedClock, "days", 0.0)
    return SkewedClock
