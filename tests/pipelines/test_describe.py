"""A plan says in words why something is computed: what the nearest labels of the cache differ in, with both values."""

from __future__ import annotations

import json

import pytest

import decant
from pipelines import label_unit
from pipelines.describe import describe_plan, describe_report
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


def test_versions_that_made_labels_and_are_others_here_are_named_and_make_nothing_invalid(data, monkeypatch):
    same = run_label(plan_run(config_of(data), progress=False), progress=False)
    assert same.provenance_differences == plan_of(data)["provenance_differences"] == []
    assert "made with" not in plan_of(data)["text"] + describe_report(same, cache=data["cache"])
    here, installed = label_unit.version("timm"), label_unit.version
    monkeypatch.setattr(label_unit, "version", lambda package: "99.1" if package == "timm" else installed(package))
    found = plan_of(data)
    assert found["provenance_differences"] == [{"what": "timm", "parts": [here], "now": "99.1"}]
    assert found["num_computed_rows"] == 0
    line = f"timm {here} (here 99.1); the labels are valid, and decant audit asks the teacher of now"
    assert f"\n  made with {line}" in found["text"]
    report = run_label(plan_run(config_of(data), progress=False), progress=False)
    assert (report.num_computed_rows, report.provenance_differences) == (0, found["provenance_differences"])
    assert f"  made with        {line}" in describe_report(report, cache=data["cache"]).splitlines()
    # Labels of both versions: what is added is made with that of now.
    more = config_of({**data, "views": {**data["views"], "count": 3}})
    mixed = run_label(plan_run(more, progress=False), progress=False)
    assert mixed.num_computed_rows == 12
    assert mixed.provenance_differences == [{"what": "timm", "parts": sorted([here, "99.1"]), "now": "99.1"}]
