"""The demos, through the commands a stranger types, with fewer passes."""

from __future__ import annotations

import json

import pytest

import decant
from student_training import demo
from student_training.text import demo as text_demo

pytestmark = pytest.mark.integration


@pytest.mark.timeout(1200)
def test_demo_runs_to_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "TEACHER_EPOCHS", 1)
    monkeypatch.setattr(demo, "STUDENT_EPOCHS", 1)
    folder = tmp_path / "demo"
    assert decant.main(["demo", "--folder", str(folder), "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    for line in ("teacher, all hard labels", "student, 5 % of the hard labels", "teacher passes while students trained: 0"):
        assert line in shown
    assert "1,347 handwritten digits" in shown

    assert decant.main(["cache", "verify", str(folder / "cache"), "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["problems"] == []
    assert verified["label_sets"][0]["num_rows"] == 8 * 1347

    assert decant.main(["label", str(folder / "configs/distilled.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_computed_rows"] == 0


@pytest.mark.timeout(1200)
def test_the_demo_of_texts_runs_to_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text_demo, "TEACHER_EPOCHS", 1)
    monkeypatch.setattr(text_demo, "STUDENT_EPOCHS", 1)
    folder = tmp_path / "demo"
    assert decant.main(["demo", "--text", "--folder", str(folder), "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    for line in ("teacher, masked words", "student, cached soft labels", "teacher passes while students trained: 0"):
        assert line in shown

    assert decant.main(["cache", "verify", str(folder / "cache"), "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["problems"] == []
    assert verified["label_sets"][0]["num_rows"] > 0

    assert decant.main(["label", str(folder / "configs/distilled.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_computed_rows"] == 0


def test_demo_leaves_strangers_folders_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    assert decant.main(["demo", "--folder", str(tmp_path)]) == 1
    assert "not a demo" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "precious"
