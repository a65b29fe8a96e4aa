"""A demo takes away what a demo wrote, and nothing else; its figures and its commands are as they can be used."""

from __future__ import annotations

import json
import sys

import pytest

from storage.errors import DecantError
from student_training.demo_support import fresh_folder, names_of_demo, program, seeds_in_words, spread

NAMES = names_of_demo("pictures", num_seeds=2)


def write_all(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text("of the demo")
        else:
            path.mkdir()
            (path / "file").write_text("of the demo")


def test_the_next_demo_removes_what_the_last_one_wrote_and_leaves_what_people_added(tmp_path):
    root = fresh_folder(str(tmp_path / "demo"), names=NAMES, num_seeds=2)
    write_all(root, NAMES)
    (root / "my-student").mkdir()
    (root / "my-student" / "model.safetensors").write_text("hours of work")
    (root / "configs" / "mine.yaml").write_text("mine")
    fresh_folder(str(root), names=names_of_demo("pictures", num_seeds=1), num_seeds=1)
    left = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert left == [".decant-demo.json", "configs/mine.yaml", "my-student/model.safetensors"]


def test_a_link_is_removed_and_not_followed(tmp_path):
    root = fresh_folder(str(tmp_path / "demo"), names=NAMES, num_seeds=2)
    big = tmp_path / "big_disk"
    big.mkdir()
    (big / "precious.txt").write_text("mine")
    (root / "cache").symlink_to(big)
    fresh_folder(str(root), names=NAMES, num_seeds=2)
    assert not (root / "cache").exists()
    assert (big / "precious.txt").exists()


@pytest.mark.parametrize(
    "marker", [None, "", "[]", '{"wrote": 3}', json.dumps({"wrote": ["../precious.txt"]}), json.dumps({"wrote": ["/tmp"]})]
)
def test_a_folder_that_is_no_demos_is_left_alone(tmp_path, marker):
    project = tmp_path / "project"
    (project / "configs").mkdir(parents=True)
    (project / "configs" / "distilled.yaml").write_text("name: mine")
    (tmp_path / "precious.txt").write_text("mine")
    if marker is not None:
        (project / ".decant-demo.json").write_text(marker)
    with pytest.raises(DecantError, match="give another --folder"):
        fresh_folder(str(project), names=NAMES, num_seeds=2)
    assert (project / "configs" / "distilled.yaml").read_text() == "name: mine"
    assert (tmp_path / "precious.txt").exists()


def test_what_is_in_the_way_of_a_demo_is_named(tmp_path):
    root = fresh_folder(str(tmp_path / "demo"), names=names_of_demo("pictures", num_seeds=1), num_seeds=1)
    (root / "student-hard-1").mkdir()
    with pytest.raises(DecantError, match="holds student-hard-1, which no demo wrote there"):
        fresh_folder(str(root), names=NAMES, num_seeds=2)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(DecantError, match="is not a demo"):
        fresh_folder(str(file), names=NAMES, num_seeds=2)
    with pytest.raises(DecantError, match="--seeds 0: give at least 1"):
        fresh_folder(str(tmp_path / "new"), names=NAMES, num_seeds=0)


def test_one_run_has_no_deviation():
    assert spread([96.2], unit=" %") == "96.20 % (one run)"
    assert spread([95.0, 97.0], unit=" %") == " 96.00 +- 1.41 %"
    assert "deviation" not in seeds_in_words(1)
    assert "over 3 seeds" in seeds_in_words(3)


def test_commands_are_printed_as_they_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [".venv/bin/decant", "demo"])
    assert program() == ".venv/bin/decant"
    monkeypatch.setattr(sys, "argv", ["/my place/decant.py", "demo"])
    assert program() == f"{sys.executable} '/my place/decant.py'"
    (tmp_path / "decant").touch(mode=0o755)
    assert program() == "decant"
