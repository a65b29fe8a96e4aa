"""A plan says in words why something is computed: what the nearest labels of the cache differ in, with both values."""

from __future__ import annotations

import json

import pytest

import decant
from pipelines.describe import describe_plan
from pipelines.label import plan_run, run_label
from tests.pipelines.support import colour_teacher, config_of, experiment, folder_source, write_config, write_folder


@pytest.fixture
def data(tmp_path):
    pictures = write_folder(tmp_path / "pictures", per_class=4)
    return experiment(cache=tmp_path / "cache", source=folder_source(pictures, unit_size=4), teacher=colour_teacher())


def plan_of(data):
    return describe_plan(plan_run(config_of(data), progress=False))


def test_an_empty_cache_has_nothing_near(data):
    found = plan_of(data)
    assert (found["nearest"], found["num_new_units"]) == (None, 3)
    assert "3 of 3 units have no such labels yet" in found["text"]
    assert "of these" not in found["text"]


def test_the_field_that_differs_is_named_with_both_values(data):
    run_label(plan_run(config_of(data), progress=False), progress=False)
    nothing = plan_of(data)
    assert (nothing["nearest"], nothing["num_computed_rows"], nothing["num_reused_parts"]) == (None, 0, 3)
    found = plan_of({**data, "target": {"k": 3}})
    assert found["nearest"]["num_units"] == 3
    assert [(entry["field"], entry["a"], entry["b"]) for entry in found["nearest"]["fields"]] == [("target.k", 3, 2)]
    assert (
        f"of these 3 have labels {found['nearest']['request'][:8]}, which differ in target.k (2 there, 3 here)" in found["text"]
    )
    other_views = plan_of({**data, "views": {**data["views"], "seed": 7, "scale": [0.1, 1.0], "flip_probability": 0.0}})
    assert "view.scale (0.3, 1.0 there, 0.1, 1.0 here)" in other_views["text"]
    assert "view.seed (0 there, 7 here)" in other_views["text"]


def test_labels_of_other_pictures_are_not_near(data, tmp_path):
    run_label(plan_run(config_of(data), progress=False), progress=False)
    others = write_folder(tmp_path / "others", per_class=3)
    found = plan_of({**data, "source": folder_source(others, unit_size=3), "target": {"k": 3}})
    assert found["nearest"] is None


def test_why_compares_with_the_nearest_in_full(data, tmp_path, capsys):
    run_label(plan_run(config_of(data), progress=False), progress=False)
    config = write_config(tmp_path / "config.json", {**data, "target": {"k": 3}})
    assert decant.main(["plan", config, "--why"]) == 0
    text = capsys.readouterr().out
    assert "What is asked for differs:\n  target.k  A 3  B 2  (other values are stored)" in text
    assert "The same pictures in the same units" in text
    assert decant.main(["plan", config, "--why", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["why"]["nearest"] == figures["nearest"]["request"]
    assert figures["why"]["parts"] == {"all_views": 3, "some_views": 0, "no_views": 0}
