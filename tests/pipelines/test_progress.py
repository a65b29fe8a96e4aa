"""A run shows rows of committed parts while it goes on, and nothing where nobody looks."""

from __future__ import annotations

import re
import sys
import time

import pytest

from pipelines.progress import RunProgress
from storage.errors import CacheError
from storage.filesystem import Store
from storage.label_runs import following
from tests.storage.caches import make_labeller
from tests.storage.label_runs.made import start_run


@pytest.fixture
def run(tmp_path):
    return start_run(make_labeller(tmp_path))


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(following, "_SHORTEST_WAIT_SECONDS", 0.02)


def progress_of(run, **options):
    return RunProgress(run.folder, info=run.info, **{"show": True, **options})


def wait_for(pattern, capsys, *, shown=""):
    deadline = time.monotonic() + 30
    while not re.search(pattern, shown):
        assert time.monotonic() < deadline, shown
        time.sleep(0.02)
        shown += capsys.readouterr().err
    return shown


def test_a_terminal_shows_a_bar_that_follows_the_parts(run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_of(run):
        wait_for(r"label:   0%\|.*\| 0/34 \[\d\d:\d\d<\?", capsys)
        run.commit(0)
        wait_for(r"label:  21%\|.*\| 7/34 \[.* row/s\]", capsys)
        run.commit(1)
        run.commit(5)
        wait_for(r"\| 17/34 \[", capsys)
    # What was not looked at any more is done as well: the run says that it is.
    assert re.search(r"100%\|.*\| 34/34 \[", capsys.readouterr().err)


def test_a_run_that_fails_does_not_claim_to_be_done(run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def fail():
        with progress_of(run):
            wait_for("0/34", capsys)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "34/34" not in capsys.readouterr().err


def test_lines_are_written_where_they_are_asked_for(run, capsys):
    with progress_of(run, line_seconds=0.01):
        wait_for(r"^tiny: 0 of 34 rows \(0\.0%\) in 0 of 6 parts, no worker was heard of yet\n", capsys)
        run.hear()
        run.commit(0)
        shown = wait_for(r"\ntiny: 7 of 34 rows \(20\.6%\) in 1 of 6 parts, [\d.,]+ rows/s, .*1 worker\n", capsys)
    assert "|" not in shown


def test_lines_are_no_more_often_than_asked_for(run, capsys):
    with progress_of(run, line_seconds=60.0):
        time.sleep(0.3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("show", [True, False])
def test_nothing_is_shown_or_listed_where_nobody_looks(run, capsys, monkeypatch, show):
    # No terminal here, and no lines were asked for.
    for name in ("files", "names", "read", "write"):
        monkeypatch.setattr(Store, name, lambda *_, **__: pytest.fail("looked"))
    with progress_of(run, show=show):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_store_that_fails_for_a_while_does_not_end_the_run(run, capsys, monkeypatch):
    with progress_of(run, line_seconds=0.01):
        wait_for("0 of 34", capsys)
        with monkeypatch.context() as patched:
            patched.setattr(Store, "files", lambda *_, **__: (_ for _ in ()).throw(CacheError("down")))
            time.sleep(0.2)
            capsys.readouterr()
        run.commit(0)
        wait_for("7 of 34", capsys)
