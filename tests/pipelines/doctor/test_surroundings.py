"""What a newcomer's machine lacks."""

from __future__ import annotations

import runpy
import sys

import pytest
from packaging.requirements import Requirement

from pipelines.doctor.surroundings import EXTRAS, judge_surroundings, missing_modules
from tests.pipelines.doctor.specimens import machine, report
from tests.pipelines.support import ROOT

MODULES = {"apache-beam": "apache_beam", "scikit-learn": "sklearn"}


def extras_of_setup():
    """What setup.py says; what is installed may be older."""
    with pytest.MonkeyPatch.context() as patch:
        said = {}
        patch.setattr("setuptools.setup", lambda **words: said.update(words))
        runpy.run_path(str(ROOT / "setup.py"))
    return said["extras_require"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_modules_of_extras_are_those_of_their_packages(extra):
    """Packages that others bring along (tokenizers, safetensors) are not looked for."""
    packages = {Requirement(line).name for line in extras_of_setup()[extra]}
    assert set(EXTRAS[extra]) == {MODULES.get(name, name) for name in packages - {"tokenizers", "safetensors"}}


def test_an_extra_that_is_missing_matters_only_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert missing_modules("s3") == ["s3fs"]
    levels = {}
    for needed in (frozenset(), frozenset({"s3"})):
        found = [one for one in judge_surroundings(report(), needed=needed) if "extra s3 is not whole" in one.message]
        levels[needed] = found[0].level
        assert found[0].remedy == "pip install 'decant[s3]'"
    assert list(levels.values()) == ["ok", "error"]


def test_a_container_with_little_shared_memory_is_warned_of():
    found = list(judge_surroundings(report(machine=machine(shared_memory_bytes=64 << 20)), needed=frozenset()))
    (small,) = [one for one in found if "/dev/shm holds 64.0 MiB" in one.message]
    assert small.level == "warning"
    assert "--shm-size" in small.remedy


def test_a_hub_cache_on_a_disk_that_cannot_be_written_is_warned_of(monkeypatch, tmp_path):
    from huggingface_hub import constants

    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    (found,) = [one for one in judge_surroundings(report(), needed=frozenset()) if one.topic == "disk"]
    assert (found.level, found.remedy) == ("warning", "Set HF_HOME to a folder of your own")
    assert "cannot be written" in found.message
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--org--model").mkdir()
    found = list(judge_surroundings(report(), needed=frozenset()))
    assert any(f"Hugging Face cache {tmp_path}: 1 models" in one.message for one in found)
