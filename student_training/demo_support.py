"""What the demos share: a folder of their own, configs as anybody would write them, figures with their spread."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from storage.errors import DecantError

Command = Callable[[Sequence[str]], Mapping[str, Any]]
"""Runs a decant command given as words and returns its figures."""


def fresh_folder(folder: str, *, num_seeds: int) -> Path:
    """Return the folder of a demo, emptied of an earlier one.

    Raises:
        DecantError: it holds something else, or there are no seeds.
    """
    if num_seeds < 1:
        raise DecantError(f"--seeds {num_seeds}: give at least 1")
    root = Path(folder)
    if root.exists() and any(root.iterdir()) and not (root / "configs/distilled.yaml").exists():
        raise DecantError(f"{root} holds something that is not a demo; give another --folder")
    shutil.rmtree(root, ignore_errors=True)
    return root


def write_experiments(folder: Path, experiments: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """Write each experiment as a YAML file of `folder`/configs and return the files by name."""
    files = {name: folder / "configs" / f"{name}.yaml" for name in experiments}
    for name, experiment in experiments.items():
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_text(yaml.safe_dump(dict(experiment), sort_keys=False))
    return files


def spread(values: Sequence[float], *, unit: str) -> str:
    """Return mean and standard deviation of values as text."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):6.2f} +- {deviation:.2f}{unit}"
