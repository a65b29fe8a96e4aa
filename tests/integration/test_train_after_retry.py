"""A training goes on only from the tars that it began with: others hold other rows in the same places."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines import transforms
from storage.cache import Cache
from storage.label_set import LabelSet
from student_training.checkpoint import CheckpointStore
from student_training.export import RESULT_FILE, STUDENT_FILE
from tests.integration.support import refuse
from tests.pipelines import networks
from tests.pipelines.support import folder_source, plain, write_folder

TRAINING = {
    "student": {"name": "test_vit", "kwargs": {"img_size": 16, "patch_size": 8, "depth": 1}},
    "targets": {"kind": "cached"},
    "epochs": 2,
    "batch_size": 4,
    "checkpoint_every_steps": 1,
    "keep_checkpoints": 99,
    "torch_threads": 1,
    "device": "cpu",
}
NEVER = (250, 5, 130)


@pytest.fixture
def trained(command, made_by_colour, tmp_path):
    """A config, and the run of it that was killed after its third update; one picture has no label."""
    pictures = write_folder(tmp_path / "pictures", per_class=4)
    (pictures / "green" / "001.png").write_bytes(plain(networks.NAN_COLOUR))
    config = made_by_colour(
        source=folder_source(pictures, unit_size=4),
        generation={"dead_letter_limit": 0.5},
        training={**TRAINING, "output": str(tmp_path / "run")},
    )
    assert command("label", config).status == 0
    assert command("train", config, "--json").json["steps"] == 4
    kill(tmp_path / "run", after=3)
    return config


def kill(run, *, after):
    """Leave what a run leaves that is killed after so many updates."""
    for name in (RESULT_FILE, STUDENT_FILE):
        (run / name).unlink(missing_ok=True)
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.stem.partition("-")[2]) > after:
            path.unlink()


def tars(tmp_path):
    return LabelSet.open(Cache.at(str(tmp_path / "cache")), name_or_id="tiny").parts.column("tar_sha256").to_pylist()


def retry(command, config, monkeypatch):
    """Label the picture that had no label."""
    monkeypatch.setattr(networks, "NAN_COLOUR", NEVER)
    transforms._teachers.clear()
    report = command("label", config, "--retry-dead-letters", "--json").json
    assert report["num_cured_rows"] == 2
    return report["label_set"]


def test_labels_that_are_as_they_were_are_gone_on_from(command, trained, tmp_path):
    assert command("label", trained, "--retry-dead-letters", "--json").json["num_cured_rows"] == 0
    again = command("train", trained, "--json").json
    assert (again["resumed_from_step"], again["steps"]) == (3, 4)


def test_after_a_retry_a_training_is_refused_and_begins_anew_when_told_so(command, trained, tmp_path, monkeypatch):
    before = tars(tmp_path)
    run = tmp_path / "run"
    left = {path.name for path in (run / "checkpoints").iterdir()}
    label_set = retry(command, trained, monkeypatch)
    assert tars(tmp_path) != before
    saying = [
        f"{run} holds a run on labels of which parts were made anew since (decant label --retry-dead-letters, or decant repair)",
        f"label set 'tiny' ({label_set}): its tars have digest ",
        "Give another training.output",
        "start over with --restart",
    ]
    refuse(command("train", trained), status=1, saying=saying)
    assert {path.name for path in (run / "checkpoints").iterdir()} == left
    # One picture more in each of two epochs makes a batch more.
    assert command("train", trained, "--set", f"training.output={tmp_path / 'other'}", "--json").json["steps"] == 6
    assert command("train", trained, "--restart", "--json").json["resumed_from_step"] == 0
    # Also one that is finished is of the labels of then.
    assert command("train", trained, "--json").json["already_finished"]


def test_a_finished_training_is_not_taken_for_one_on_the_labels_of_now(command, trained, tmp_path, monkeypatch):
    assert command("train", trained, "--json").json["resumed_from_step"] == 3
    retry(command, trained, monkeypatch)
    refuse(command("train", trained), status=1, saying=["parts were made anew since"])
    assert Path(tmp_path / "run" / STUDENT_FILE).exists()


def test_a_repair_that_gives_other_bytes_is_a_retry_too(command, trained, tmp_path, monkeypatch):
    victim = next((tmp_path / "cache" / "requests").glob("*/*.tar"))
    victim.unlink()
    with monkeypatch.context() as patched:
        patched.setenv(networks.DRIFT, "1.001")
        transforms._teachers.clear()
        repaired = command("repair", trained, "--json").json
    assert (repaired["num_recomputed_parts"], repaired["num_equal_parts"]) == (1, 0)
    refuse(command("train", trained), status=1, saying=["label set 'tiny'", "parts were made anew since"])


def test_a_repair_that_gives_the_same_bytes_is_none(command, trained, tmp_path):
    victim = next((tmp_path / "cache" / "requests").glob("*/*.tar"))
    victim.unlink()
    assert command("repair", trained, "--json").json["num_equal_parts"] == 1
    assert command("train", trained, "--json").json["resumed_from_step"] == 3


def test_checkpoints_of_earlier_releases_go_on(command, trained, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    store = CheckpointStore(folder, keep=99)
    state = store.load_newest()
    assert state["step"] == 3
    (label_set,) = state["identity"].pop("label_tars")
    assert label_set == LabelSet.open(Cache.at(str(tmp_path / "cache")), name_or_id="tiny").manifest.id
    shutil.rmtree(folder)
    store.save(state, step=3)
    assert command("train", trained, "--json").json["resumed_from_step"] == 3
