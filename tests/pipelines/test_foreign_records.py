"""Part records that a stranger wrote, seals right: no file is read, moved or allocated by what they say beyond their own part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines import transforms
from pipelines.label import plan_run, run_label
from pipelines.repair import repair
from storage.errors import CorruptError, FormatError
from storage.hashing import canonical_json, seal, unseal
from tests.pipelines import networks
from tests.pipelines.support import colour_teacher, config_of, experiment, folder_source, plain, snapshot, write_folder

ELSEWHERE = "../../../elsewhere.tar"
"""From the folder of a request: beside the cache."""


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    yield
    transforms._teachers.clear()


@pytest.fixture
def config(tmp_path):
    """Labels of 12 pictures in 2 units, of which the teacher fails on one, and a file beside their cache."""
    pictures = tmp_path / "pictures"
    write_folder(pictures, per_class=4)
    (pictures / "green" / "001.png").write_bytes(plain(networks.RAISE_COLOUR))
    config = config_of(
        experiment(
            cache=tmp_path / "cache",
            source=folder_source(pictures, unit_size=6),
            teacher=colour_teacher(),
            generation={"dead_letter_limit": 0.9},
        )
    )
    label(config)
    (tmp_path / "elsewhere.tar").write_bytes(b"mine")
    return config


def label(config, *, retry=False):
    return run_label(plan_run(config, progress=False, retry_dead_letters=retry), progress=False)


def forge(config, **changes):
    """Change the record of every part."""
    for path in Path(config.cache).glob("requests/*/*.v*.json"):
        record = json.loads(unseal(path.read_bytes()))
        path.write_bytes(seal(canonical_json({**record, **changes})))


EARLIER = [{"tar_name": ELSEWHERE, "num_rows": 0, "provenance": {}}]


@pytest.mark.parametrize("changes", [{"tar_name": ELSEWHERE, "tar_bytes": 4}, {"tar_name": ELSEWHERE}, {"earlier": EARLIER}])
@pytest.mark.parametrize("lost", ["nothing", "manifest"])
def test_a_record_that_names_a_file_elsewhere_is_refused_and_nothing_is_touched(config, tmp_path, changes, lost):
    forge(config, **changes)
    if lost == "manifest":
        for path in Path(config.cache).glob("label_sets/*/manifest.json"):
            path.unlink()
    before = snapshot(tmp_path)
    with pytest.raises(FormatError, match="not a part record this release can read"):
        repair(config, progress=False)
    with pytest.raises(FormatError, match="not a part record this release can read"):
        label(config, retry=True)
    assert snapshot(tmp_path) == before
    assert (tmp_path / "elsewhere.tar").read_bytes() == b"mine"


LETTER = {"key": "a", "position": 0, "view": None, "stage": "teacher", "reason": "x"}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_samples": 2**24, "dead_letters": [LETTER]},
        {"blocks": [], "dead_letters": [LETTER]},
        {"dead_letters": [{**LETTER, "position": 6}]},
        {"dead_letters": [{**LETTER, "view": 2}]},
        {"dead_letters": [{**LETTER, "view": -1}]},
    ],
)
def test_dead_letters_of_other_rows_than_the_part_has_are_not_tried_again(config, tmp_path, changes):
    forge(config, **changes)
    before = snapshot(tmp_path)
    with pytest.raises(CorruptError, match="its blocks cover .* or a dead letter is of another"):
        label(config, retry=True)
    assert snapshot(tmp_path) == before
