"""What is wrong with a source is said before anything is labelled."""

from __future__ import annotations

import pytest

from pipelines import survey
from pipelines.survey import survey_run
from storage.errors import CacheError, SourceError
from tests.pipelines.support import colour_teacher, config_of, experiment, folder_source, write_folder


def test_units_of_more_samples_than_a_part_holds_are_refused(tmp_path, monkeypatch):
    source = folder_source(write_folder(tmp_path / "pictures"), unit_size=10)
    config = config_of(experiment(cache=tmp_path / "cache", source=source, teacher=colour_teacher()))
    assert [unit.num_samples for unit in survey_run(config, progress=False).units] == [10, 10, 4]
    monkeypatch.setattr(survey, "MAX_UNIT_SAMPLES", 9)
    with pytest.raises(SourceError, match=r"unit '.*' holds 10 samples, a part at most 9: split the file, .*source\.unit_size"):
        survey_run(config, progress=False)


def test_a_cache_that_cannot_be_written_is_refused_only_where_something_is_to_be_written(tmp_path):
    """Also by root, who may write in every folder of a disk."""
    source = folder_source(write_folder(tmp_path / "pictures"), unit_size=10)
    config = config_of(experiment(cache="/proc/decant", source=source, teacher=colour_teacher()))
    surveyed = survey_run(config, progress=False)
    assert [unit.num_samples for unit in surveyed.units] == [10, 10, 4]
    with pytest.raises(CacheError, match="cannot write /proc/decant/.*is writable"):
        survey_run(config, progress=False, writes=True)
