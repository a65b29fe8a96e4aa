"""A labelled folder that may be damaged, and what is loaded to mend it."""

from __future__ import annotations

import shutil

import pytest

from pipelines import transforms
from pipelines.teachers import LOADERS
from tests.pipelines.repair.damage import config_at, label
from tests.pipelines.support import save_teacher, write_folder


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    transforms._teachers.clear()
    yield
    transforms._teachers.clear()


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """12 pictures in 3 units with 2 views, labelled: a copy of a folder and where it lay. The teacher's memo is in the cache."""
    root = tmp_path_factory.mktemp("labelled")
    folder = root / "here"
    write_folder(folder / "pictures", per_class=4)
    save_teacher(folder / "teacher.safetensors")
    label(config_at(folder))
    transforms._teachers.clear()
    shutil.copytree(folder, root / "copy")
    return root / "copy", folder


@pytest.fixture
def folder(pristine):
    """The folder as it was, to be damaged; at the same place each time, which the manifest tells."""
    copy, folder = pristine
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    return folder


@pytest.fixture
def loads(monkeypatch):
    counted = []
    for kind, load in list(LOADERS.items()):
        monkeypatch.setitem(LOADERS, kind, lambda config, kind=kind, load=load: (counted.append(kind), load(config))[1])
    return counted
