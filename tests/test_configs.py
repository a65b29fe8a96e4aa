"""Every shipped experiment is valid, and says what it claims to say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from storage.config import load_config
from student_training.demo import write_configs
from tests.trials import sst2, stories

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_loads(path):
    config = load_config(str(path))
    assert config.source is not None
    if config.training is None:
        assert config.teacher is not None


def test_digits_is_what_the_demo_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = write_configs(Path("runs/demo"), num_train=1347)
    assert load_config(str(files["distilled"])) == load_config(str(CONFIGS / "digits.yaml"))


@pytest.mark.parametrize("trial", [sst2, stories], ids=["sst2", "stories"])
def test_experiments_of_trials_are_valid_and_of_one_cache(trial, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "ROOT", tmp_path)
    folder = trial.FOLDER
    configs = {name: load_config(str(tmp_path / file)) for name, file in trial.write_configs(folder).items()}
    assert configs["teacher"].training.output == str(folder / "teacher")
    labelling = [config for config in configs.values() if config.teacher is not None]
    assert labelling
    for config in labelling:
        assert (config.cache, config.teacher.name) == (str(folder / "cache"), configs["teacher"].training.output)
        assert config.source == configs["teacher"].source


@pytest.mark.parametrize("name", ["tinybert_task", "tinybert_task_prediction"])
def test_candidates_that_a_recipe_reads_are_made_by_the_command_in_its_header(name):
    path = CONFIGS / f"{name}.yaml"
    source = load_config(str(path)).source
    candidates = source.augmentation.candidates
    assert (
        f"#   python -m pipelines.text.candidates --model google-bert/bert-base-uncased --output {candidates}\n"
        in path.read_text()
    )
    plain = source.model_copy(update={"augmentation": None})
    assert plain == load_config(str(CONFIGS / "sst2_teacher.yaml")).source


def test_students_of_one_teacher_read_the_same_labels():
    first, second = (load_config(str(CONFIGS / f"sst2_{name}.yaml")) for name in ("bilstm", "text_cnn"))
    for part in ("cache", "source", "teacher", "views", "target"):
        assert getattr(first, part) == getattr(second, part)


@pytest.mark.parametrize("size", ["5m", "11m", "21m"])
def test_tinyvit_students_read_the_labels_that_are_made_for_them(size):
    labels = load_config(str(CONFIGS / "imagenet22k_labels.yaml"))
    student = load_config(str(CONFIGS / f"imagenet22k_tinyvit_{size}.yaml"))
    assert student.training.targets.label_set == labels.name
    assert student.cache == labels.cache
    assert student.source == labels.source
    assert student.training.epochs == labels.views.count
    assert (labels.target.k, labels.teacher.num_classes) == (100, 21841)


def test_every_config_that_texts_name_is_there():
    """In help, README, docs, other configs and code: an example that cannot be typed is none."""
    folders = ("docs", "storage", "pipelines", "student_training", "configs")
    files = [*ROOT.glob("*.md"), ROOT / "decant.py", ROOT / "Makefile"]
    files += [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in (".md", ".py", ".yaml")]
    named = {(file, name) for file in files for name in re.findall(r"configs/(\w+\.yaml)", file.read_text(encoding="utf-8"))}
    assert len({name for _, name in named}) > 10
    assert [f"{file.relative_to(ROOT)}: {name}" for file, name in sorted(named) if not (CONFIGS / name).exists()] == []
