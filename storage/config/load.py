"""Load an experiment's YAML file and report everything that is wrong with it at once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path as LocalPath
from typing import Any

import fsspec
from pydantic import ValidationError

from storage.config.experiment import ExperimentConfig
from storage.config.overrides import apply_overrides, parse_overrides
from storage.config.problems import Path, explain, find_non_json
from storage.config.yaml_text import YamlProblemsError, parse_yaml
from storage.errors import ConfigError
from storage.naming import nearest


def load_config(path: str | os.PathLike[str], *, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read, override and check the config of an experiment.

    Environment variables are not expanded; relative paths in the file are relative to the working directory, not to the file.

    Args:
        path: local path or fsspec URL of a YAML file.
        overrides: `key.key=value`, the value as YAML; later ones win, absent sections on the way are made.

    Raises:
        ConfigError: the file cannot be read, is no YAML mapping, or is no valid config; the message has one line a problem.
            Checks across keys run when the keys themselves are right.
    """
    origin = os.fspath(path)
    try:
        data = parse_yaml(_read_text(origin))
    except YamlProblemsError as error:
        raise _config_error(origin, error.problems) from error
    if data is None:
        raise ConfigError(f"{origin}: the file is empty; it needs at least the key name. See docs/configuration.md")
    _require_mapping(data, origin=origin)
    parsed, problems = parse_overrides(overrides)
    data, override_texts, more_problems = apply_overrides(data, parsed)
    return _check(data, origin=origin, override_texts=override_texts, problems=[*problems, *more_problems])


def parse_config(data: dict[str, Any], *, origin: str) -> ExperimentConfig:
    """Check the config of an experiment.

    Args:
        data: as a YAML or JSON file holds it.
        origin: where it comes from, for messages.

    Raises:
        ConfigError: see `load_config`.
    """
    _require_mapping(data, origin=origin)
    return _check(data, origin=origin, override_texts={}, problems=[])


def _check(data: dict[str, Any], *, origin: str, override_texts: Mapping[Path, str], problems: list[str]) -> ExperimentConfig:
    try:
        found = list(find_non_json(data))
    except RecursionError as error:
        raise _config_error(
            origin, [*problems, "a section holds itself through an alias, or sections are nested too deeply"]
        ) from error
    config = None
    if not found:
        try:
            config = ExperimentConfig.model_validate_json(json.dumps(data))
        except ValidationError as error:
            found = explain(error, root=ExperimentConfig, data=data)
    for problem in found:
        above = [problem.path[:depth] for depth in range(len(problem.path), 0, -1)]
        override = next((override_texts[path] for path in above if path in override_texts), None)
        problems.append(problem.text if override is None else f"{problem.text} (from override {override!r})")
    if problems or config is None:
        raise _config_error(origin, problems)
    return config


def _config_error(origin: str, problems: Sequence[str]) -> ConfigError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError("\n  ".join([f"{origin}: {count}", *problems]))


def _require_mapping(data: Any, *, origin: str) -> None:
    if not isinstance(data, dict):
        keys = ", ".join(ExperimentConfig.model_fields)
        raise ConfigError(f"{origin}: expected a mapping with keys {keys}, but the top level is a {_noun(data)}")


def _noun(value: Any) -> str:
    nouns = {list: "list", str: "string", bool: "truth value", int: "number", float: "number"}
    return nouns.get(type(value), type(value).__name__)


def _read_text(origin: str) -> str:
    try:
        with fsspec.open(origin, "rb") as file:
            content: bytes = file.read()
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{origin}: there is no such config file.{_nearest_file(origin)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: the file is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except Exception as error:  # every fsspec backend has errors of its own
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{origin}: the config file cannot be read ({reason}); check the path and your access to it") from error


def _nearest_file(origin: str) -> str:
    folder = LocalPath(origin).parent
    files = [file for pattern in ("*.yaml", "*.yml") for file in folder.glob(pattern)] if folder.is_dir() else []
    match = nearest(LocalPath(origin).stem, [file.stem for file in files])
    near = next((file for file in files if file.stem == match), None)
    return " Give the path of a YAML file." if near is None else f" Did you mean {str(near)!r}?"
