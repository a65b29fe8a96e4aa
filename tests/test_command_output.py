"""Standard output: with --json nothing else is on it, and a reader that leaves, or a full disk, ends in no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import decant
from pipelines import transforms
from tests.pipelines.support import experiment, folder_source, write_config, write_folder

ROOT = Path(__file__).resolve().parents[1]
TALKING = """
import os
from tests.pipelines.networks import colours

def make():
    print("a teacher says hello")
    os.system("echo a process says hello")
    return colours()
"""


def test_what_a_teachers_code_prints_is_no_part_of_the_json(tmp_path, monkeypatch, capfd):
    (tmp_path / "talking_teacher.py").write_text(TALKING)
    monkeypatch.syspath_prepend(tmp_path)
    pictures = folder_source(write_folder(tmp_path / "pictures"))
    teacher = {"kind": "factory", "name": "talking_teacher:make", "device": "cpu"}
    config = write_config(tmp_path / "c.json", experiment(cache=tmp_path / "cache", source=pictures, teacher=teacher))
    capfd.readouterr()
    transforms._teachers.clear()
    assert decant.main(["plan", str(config), "--no-estimate", "--json"]) == 0
    transforms._teachers.clear()
    said = capfd.readouterr()
    assert json.loads(said.out)["num_samples"] == 24
    assert "a teacher says hello\n" in said.err
    assert "a process says hello\n" in said.err


@pytest.mark.parametrize("words", [["ls", "cache"], ["ls", "cache", "--json"], ["show", "cache", "birds", "--json"]])
def test_a_reader_that_has_left_gets_no_traceback(tmp_path, words):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = _run(words, stdout=writing, folder=tmp_path)
    finally:
        os.close(writing)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ("holds no label set" in ended.stderr) == (words[0] == "show")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_json_that_finds_no_room_is_one_line(tmp_path):
    with Path("/dev/full").open("w") as full:
        ended = _run(["ls", "cache", "--json"], stdout=full, folder=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("decant: OSError: [Errno 28] No space left on device")
    assert ended.stderr.count("\n") == 1


def _run(words, *, stdout, folder):
    command = [sys.executable, str(ROOT / "decant.py"), "cache", *words]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=folder, check=False)
