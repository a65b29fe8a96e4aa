"""`decant label` with several workers and several times at once: the same bytes."""

from __future__ import annotations

import json

import pytest

from tests.pipelines.support import (
    colour_teacher,
    run_decant,
    snapshot,
    start_decant,
)


@pytest.mark.integration
def test_two_workers_make_the_bytes_of_one(command, made, tmp_path):
    """In processes of their own, with the default number of torch threads: that differs between the two as well."""
    command("label", made("one", cache=tmp_path / "one", generation={"torch_threads": None}))
    config = made("two", cache=tmp_path / "two", generation={"torch_threads": None})
    status, out, err = run_decant("label", config, "--workers", "2", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["num_computed_rows"] == 48
    one, two = snapshot(tmp_path / "one"), snapshot(tmp_path / "two")
    assert one == two
    status, out, err = run_decant("label", config, cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "nothing to do" in out


@pytest.mark.integration
def test_two_runs_at_once_make_the_bytes_of_one(command, made, tmp_path):
    config = made(teacher=colour_teacher(seconds_per_batch=0.05), views=4)
    command("label", made("alone", cache=tmp_path / "alone", teacher=colour_teacher(seconds_per_batch=0.05), views=4))
    runs = [start_decant("label", config, "--json") for _ in range(2)]
    for run in runs:
        _, err = run.communicate(timeout=120)
        assert (run.returncode, err) == (0, "")
    assert snapshot(tmp_path / "cache") == snapshot(tmp_path / "alone")
