"""The bar counts rows of committed parts, also of those that are tried again."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from pipelines import progress
from pipelines.label_task import LabelTask
from pipelines.progress import PartProgress
from storage.cache import Cache
from storage.specs import PartSpec
from tests.pipelines.test_plan import REQUEST, commit, unit


@pytest.fixture
def cache(tmp_path):
    return Cache.at(str(tmp_path))


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(progress, "_POLL_SECONDS", 0.01)


def part_of(number, views):
    return PartSpec(
        request=REQUEST.fingerprint(), unit_digest=unit(number).digest, first_view=views[0], num_views=views[1] - views[0]
    )


def wait_for(text, capsys, *, shown=""):
    deadline = time.monotonic() + 20
    while text not in shown:
        assert time.monotonic() < deadline, shown
        time.sleep(0.02)
        shown += capsys.readouterr().err
    return shown


def test_new_parts_and_parts_that_are_tried_again_are_counted(cache, capsys):
    before = commit(cache, unit(1), (0, 2))
    tasks = [
        LabelTask(unit=unit(1).unit, part=before.part, num_samples=2, replaces=before.tar_name, num_dead_rows=3),
        LabelTask(unit=unit(2).unit, part=part_of(2, (0, 2)), num_samples=2),
        LabelTask(unit=unit(3).unit, part=part_of(3, (0, 1)), num_samples=2, replaces="x.tar", num_dead_rows=1),
    ]
    with PartProgress(tasks, cache=cache, show=True):
        wait_for("0/8", capsys)
        commit(cache, unit(2), (0, 2))
        wait_for("4/8", capsys)
        data = cache.store.read(cache.tar_name(before)) + bytes(512)
        replaced = before.model_copy(update={"tar_name": f"{before.part.name}.{'0' * 16}.tar", "tar_bytes": len(data)})
        cache.replace_part(data, record=replaced, replaces=before.tar_name)
        wait_for("7/8", capsys)
    # A part of which nothing could be cured is done when all is.
    assert re.search(r"8/8 ", capsys.readouterr().err)


def test_a_run_that_fails_does_not_claim_to_be_done(cache, capsys):
    tasks = [LabelTask(unit=unit(2).unit, part=part_of(2, (0, 2)), num_samples=2)]
    try:
        with PartProgress(tasks, cache=cache, show=True):
            wait_for("0/4", capsys)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert "4/4" not in capsys.readouterr().err


def test_nothing_is_shown_or_listed_where_nobody_looks(cache, capsys, monkeypatch):
    monkeypatch.setattr(progress, "file_names", lambda *_: pytest.fail("listed"))
    before = LabelTask(unit=unit(1).unit, part=part_of(1, (0, 1)), num_samples=2, replaces="x.tar", num_dead_rows=np.int64(1))
    with PartProgress([before], cache=cache, show=False):
        pass
    assert capsys.readouterr().err == ""
