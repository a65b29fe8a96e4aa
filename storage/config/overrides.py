"""Apply `a.b.c=value` overrides of the command line to config data."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.config.problems import Path, dotted
from storage.config.yaml_text import YamlProblemsError, parse_yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class Override:
    """One override.

    Attributes:
        text: as given on the command line.
        path: keys from the top of the config.
        value: what its YAML says.
    """

    text: str
    path: tuple[str, ...]
    value: Any


def parse_overrides(texts: Sequence[str]) -> tuple[list[Override], list[str]]:
    """Split overrides at their first `=`.

    Returns:
        What could be parsed, and a line for each that could not.
    """
    parsed, problems = [], []
    for text in texts:
        name, equals, value = text.partition("=")
        keys = tuple(name.strip().split("."))
        if not equals or not all(keys):
            problems.append(f"override {text!r}: write it as key.key=value, for instance training.epochs=3")
            continue
        try:
            parsed.append(Override(text=text, path=keys, value=parse_yaml(value)))
        except YamlProblemsError as error:
            problems += [f"override {text!r}: {problem}" for problem in error.problems]
    return parsed, problems


def apply_overrides(data: dict[str, Any], overrides: Sequence[Override]) -> tuple[dict[str, Any], dict[Path, str], list[str]]:
    """Set each override's key in a copy of the data; later ones win, and absent or null sections on the way are made.

    Returns:
        The new data, the text of the override behind each key that was made or set, and a line for each override that runs
        through something that is no section.
    """
    result = copy.deepcopy(data)
    origins: dict[Path, str] = {}
    problems = []
    for override in overrides:
        section = result
        for depth, key in enumerate(override.path[:-1], start=1):
            below = section.get(key)
            if below is None:
                below = section[key] = {}
                origins[override.path[:depth]] = override.text
            if not isinstance(below, dict):
                where = dotted(override.path[:depth])
                problems.append(f"override {override.text!r}: {where} is no section but {below!r}; set {where} as a whole")
                break
            section = below
        else:
            section[override.path[-1]] = override.value
            origins[override.path] = override.text
    return result, origins, problems
