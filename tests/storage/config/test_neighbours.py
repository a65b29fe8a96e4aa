"""Paths that are found from the config's folder alone are named."""

import pytest

import decant
from storage.config import load_config
from storage.config.neighbours import neighbours

TEXT = """
name: birds
cache: cache
source: {kind: image_folder, path: [pictures, more]}
teacher: {kind: timm, name: test_vit, checkpoint: weights.pt, num_classes: 3}
training: {output: runs, student: {name: test_vit}, targets: {kind: cached}}
"""


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "experiment"
    (folder / "pictures").mkdir(parents=True)
    (folder / "birds.yaml").write_text(TEXT)
    return folder / "birds.yaml"


def test_paths_beside_the_config_are_named_where_the_working_directory_lacks_them(config, tmp_path, monkeypatch):
    def said():
        return neighbours(load_config(config), origin=str(config))

    monkeypatch.chdir(tmp_path)
    assert said() == (
        f"source.path pictures lies beside {config}, but relative paths start in the working directory, which is {tmp_path}: run "
        f"the command in {config.parent}, or write whole paths"
    )
    (config.parent / "weights.pt").touch()
    assert "source.path pictures, and 1 more of its paths, lies beside" in said()
    for name in ("pictures", "weights.pt"):
        (tmp_path / name).touch()
    assert said() is None
    monkeypatch.chdir(config.parent)
    assert said() is None


def test_errors_end_with_them(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert decant.main(["train", str(config)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("decant: cache holds no label set; make one with `decant label`\nsource.path pictures lies beside ")
    monkeypatch.chdir(config.parent)
    assert decant.main(["train", str(config)]) == 1
    assert "lies beside" not in capsys.readouterr().err
