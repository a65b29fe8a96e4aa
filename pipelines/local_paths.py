"""Paths of this machine that a config names, as other machines must find them too."""

from __future__ import annotations

import re
from pathlib import Path

from storage.config import SourceConfig, TeacherConfig
from storage.teacher_files import LOCAL_FOLDER, local_folder

_PATTERN = re.compile(r"[*?\[{]")


def local_paths(*, teacher: TeacherConfig, source: SourceConfig) -> dict[str, str]:
    """Return the local files and folders that workers read, absolute, by their keys in the config.

    What matches a pattern is found when it is read; of a pattern only the folder counts.
    """
    found: dict[str, str] = {}
    folder = local_folder(teacher)
    if folder is not None:
        found["teacher.name"] = str(folder)
    if teacher.checkpoint is not None:
        found["teacher.checkpoint"] = teacher.checkpoint
    if teacher.tokenizer is not None and Path(teacher.tokenizer).exists():
        found["teacher.tokenizer"] = teacher.tokenizer
    paths = (source.path,) if isinstance(source.path, str) else source.path
    for index, path in enumerate(paths):
        found["source.path" if isinstance(source.path, str) else f"source.path[{index}]"] = path
    if isinstance(source.classes, str):
        found["source.classes"] = source.classes
    augmentation = getattr(source, "augmentation", None)
    if augmentation is not None:
        found["source.augmentation.candidates"] = augmentation.candidates
    return {key: _absolute(_without_patterns(path)) for key, path in found.items() if _is_local(path)}


def absolute_teacher(config: TeacherConfig) -> TeacherConfig:
    """Return the config of a teacher with absolute paths: a worker's working folder is another."""
    folder = local_folder(config)
    changes: dict[str, str] = {}
    if folder is not None:
        prefix = LOCAL_FOLDER if config.name.startswith(LOCAL_FOLDER) else ""
        changes["name"] = prefix + _absolute(config.name.removeprefix(prefix))
    if config.checkpoint is not None:
        changes["checkpoint"] = _absolute(config.checkpoint)
    if config.tokenizer is not None and Path(config.tokenizer).exists():
        changes["tokenizer"] = _absolute(config.tokenizer)
    return config.model_copy(update=changes)


def absolute_source(config: SourceConfig) -> SourceConfig:
    """Return the config of a source with absolute paths: a worker's working folder is another."""
    changes: dict[str, object] = {}
    path = config.path
    changes["path"] = absolute_url(path) if isinstance(path, str) else tuple(absolute_url(one) for one in path)
    if isinstance(config.classes, str):
        changes["classes"] = absolute_url(config.classes)
    augmentation = getattr(config, "augmentation", None)
    if augmentation is not None:
        changes["augmentation"] = augmentation.model_copy(update={"candidates": absolute_url(augmentation.candidates)})
    return config.model_copy(update=changes)


def absolute_url(path: str) -> str:
    """Return a URL as it is, a local path absolute."""
    return _absolute(path) if _is_local(path) else path


def _is_local(path: str) -> bool:
    return "://" not in path


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _without_patterns(path: str) -> str:
    """Return the part of a path before its first element with a pattern."""
    while _PATTERN.search(path) and not Path(path).exists():
        path = str(Path(path).parent)
    return path
