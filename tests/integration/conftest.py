"""Whole commands over real pictures with real tiny teachers."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import pytest
import torch

import decant
from pipelines import teachers, transforms
from tests.pipelines.support import (
    colour_teacher,
    experiment,
    folder_source,
    save_teacher,
    timm_teacher,
    write_config,
    write_folder,
)


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    """What a command leaves behind in its process."""
    logger, threads = logging.getLogger("apache_beam"), torch.get_num_threads()
    level = logger.level
    yield
    transforms._teachers.clear()
    logger.setLevel(level)
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def command(capsys):
    """Run a command in this process."""

    def run(*words):
        capsys.readouterr()
        status = decant.main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ended(status, captured.out, captured.err)

    return run


@pytest.fixture
def loads(monkeypatch):
    """Count how often a teacher is loaded, as in a process that has none yet."""
    counted = []

    def counting(kind, load):
        def loader(config):
            counted.append(kind)
            return load(config)

        return loader

    for kind, load in list(teachers.LOADERS.items()):
        monkeypatch.setitem(teachers.LOADERS, kind, counting(kind, load))
    transforms._teachers.clear()
    return counted


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """24 pictures in 3 class folders; not to be changed."""
    return write_folder(tmp_path_factory.mktemp("source") / "pictures")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Weights of a tiny timm model with 3 classes."""
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture
def made(tmp_path, pictures, checkpoint):
    """Write a config whose parts can be changed; the cache is `tmp_path/cache`."""

    def make(file="config", **changes):
        data = {
            "cache": tmp_path / "cache",
            "source": folder_source(pictures),
            "teacher": timm_teacher(checkpoint),
            **changes,
        }
        return write_config(tmp_path / f"{file}.json", experiment(**data))

    return make


@pytest.fixture
def made_by_colour(tmp_path, pictures):
    """The same with a teacher that looks at colours."""

    def make(**changes):
        data = {"cache": tmp_path / "cache", "source": folder_source(pictures), "teacher": colour_teacher(), **changes}
        return write_config(tmp_path / "config.json", experiment(**data))

    return make
