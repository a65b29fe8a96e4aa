"""Paths of this machine are found in a config, and made absolute for workers elsewhere."""

from __future__ import annotations

import pytest

from pipelines.local_paths import absolute_source, absolute_teacher, absolute_url, local_paths
from storage.sources import open_source
from tests.pipelines.support import config_of, experiment


def sections(source, teacher):
    config = config_of(
        {
            **experiment(cache="cache", source=source, teacher=teacher),
            "views": {"kind": "masked_tokens", "length": 8} if source["kind"] == "text" else {"kind": "evaluation"},
        }
    )
    return config.source, config.teacher


TIMM = {"kind": "timm", "name": "vit_tiny_patch16_224"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a bit of everything."""
    monkeypatch.chdir(tmp_path)
    for folder in ("bert", "shards"):
        (tmp_path / folder).mkdir()
    for file in ("weights.pt", "names.txt", "a.txt", "candidates.jsonl"):
        (tmp_path / file).write_text("a\n")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "teacher", "found"),
    [
        (
            {"kind": "webdataset", "path": "shards/{000..003}.tar", "classes": "names.txt"},
            {**TIMM, "checkpoint": "weights.pt"},
            {"teacher.checkpoint": "weights.pt", "source.path": "shards", "source.classes": "names.txt"},
        ),
        (
            {"kind": "webdataset", "path": ["shards/*/a.tar", "s3://bucket/{a,b}.tar"]},
            {**TIMM, "name": "local-dir:bert"},
            {"teacher.name": "bert", "source.path[0]": "shards"},
        ),
        (
            {"kind": "text", "path": "a.txt", "augmentation": {"candidates": "candidates.jsonl"}},
            {"kind": "masked_lm", "name": "bert", "tokenizer": "bert"},
            {
                "teacher.name": "bert",
                "teacher.tokenizer": "bert",
                "source.path": "a.txt",
                "source.augmentation.candidates": "candidates.jsonl",
            },
        ),
        (
            {"kind": "text", "path": "memory://a.txt"},
            {"kind": "masked_lm", "name": "org/model", "tokenizer": "org/other"},
            {},
        ),
    ],
)
def test_local_paths_are_found_by_their_keys(here, source, teacher, found):
    source, teacher = sections(source, teacher)
    paths = local_paths(teacher=teacher, source=source)
    assert paths == {key: str(here / path) for key, path in found.items()}
    absolute = local_paths(teacher=absolute_teacher(teacher), source=absolute_source(source))
    assert absolute == paths


def test_names_that_are_no_paths_stay(here):
    _, teacher = sections({"kind": "text", "path": "a.txt"}, {"kind": "masked_lm", "name": "org/model", "tokenizer": "org/a"})
    assert absolute_teacher(teacher) == teacher
    _, timm = sections({"kind": "webdataset", "path": "shards"}, TIMM)
    assert absolute_teacher(timm) == timm


@pytest.mark.parametrize("url", ["s3://bucket/cache", "gs://bucket", "memory://cache"])
def test_urls_stay(url):
    assert absolute_url(url) == url


def test_an_absolute_source_has_the_units_of_the_relative_one(here):
    source, _ = sections({"kind": "text", "path": ["a.txt", "names.txt"]}, {"kind": "masked_lm", "name": "bert"})
    units = open_source(source).units()
    again = open_source(absolute_source(source)).units()
    assert [(unit.name, unit.locator) for unit in again] == [(unit.name, unit.locator) for unit in units]
