"""What the demos share: a folder of their own, configs as anybody would write them, figures with their spread."""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from storage.errors import DecantError

_MARKER = ".decant-demo.json"
"""Says that a folder is a demo's, and what the demo wrote in it."""

Command = Callable[[Sequence[str]], Mapping[str, Any]]
"""Runs a decant command given as words and returns its figures."""


def names_of_demo(*samples: str, num_seeds: int) -> list[str]:
    """Return what a demo writes in its folder.

    Args:
        samples: folders of what is learned from.
    """
    students = [f"student-{kind}-{seed}" for kind in ("hard", "distilled") for seed in range(num_seeds)]
    return [*samples, "cache", "teacher", *students, *(f"configs/{name}.yaml" for name in ("teacher", "distilled", "hard"))]


def fresh_folder(folder: str, *, names: Sequence[str], num_seeds: int) -> Path:
    """Return the folder of a demo without what an earlier one wrote there; everything else is left as it is.

    Args:
        names: what this demo will write; kept beside it, so that the next one knows.

    Raises:
        DecantError: it holds something else, or there are no seeds.
    """
    if num_seeds < 1:
        raise DecantError(f"--seeds {num_seeds}: give at least 1")
    root = Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        earlier = _written_by_demo(root)
        for name in earlier:
            _remove(root / name)
        foreign = [name for name in names if (root / name).exists()]
        if foreign:
            raise DecantError(
                f"{root} holds {', '.join(foreign)}, which no demo wrote there and this one would; move it, or give another "
                "--folder"
            )
    root.mkdir(parents=True, exist_ok=True)
    (root / _MARKER).write_text(json.dumps({"wrote": list(names)}), encoding="utf-8")
    return root


def _written_by_demo(root: Path) -> list[str]:
    """Return what an earlier demo wrote, as it said itself.

    Raises:
        DecantError: there was none.
    """
    try:
        wrote = json.loads((root / _MARKER).read_text(encoding="utf-8"))["wrote"]
        names = [str(name) for name in wrote if isinstance(wrote, list)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DecantError(
            f"{root} holds something that is not a demo (there is no {_MARKER} that says what a demo wrote), so nothing in it "
            "was touched; give another --folder, or remove it if it may go"
        ) from error
    if any(Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts for name in names):
        raise DecantError(f"{root / _MARKER} names files outside its folder, so nothing was touched; give another --folder")
    return names


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def program() -> str:
    """Return what starts `decant` from here: its name where the shell finds it, else how this process was started."""
    started = Path(sys.argv[0])
    if shutil.which("decant") is not None or started.stem != "decant":
        return "decant"
    words = [sys.executable, sys.argv[0]] if started.suffix == ".py" else [sys.argv[0]]
    return " ".join(shlex.quote(word) for word in words)


def say_next(say: Callable[[str], None], *, root: Path, experiment: str, distilled: Path) -> None:
    """Say which commands to try on what a demo left.

    Args:
        experiment: name of the label set.
        distilled: config of the student that learned from it.
    """
    start = program()
    say("")
    say("next:")
    say(f"  {start} cache show {root / 'cache'} {experiment}")
    say(f"  {start} cache verify {root / 'cache'}")
    say(f"  {start} label {distilled}      (again: nothing is left to do)")
    say(f"  {start} train {distilled} --set training.seed=7 --set training.output={root / 'my-student'}")


def write_experiments(folder: Path, experiments: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """Write each experiment as a YAML file of `folder`/configs and return the files by name."""
    files = {name: folder / "configs" / f"{name}.yaml" for name in experiments}
    for name, experiment in experiments.items():
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_text(yaml.safe_dump(dict(experiment), sort_keys=False))
    return files


def spread(values: Sequence[float], *, unit: str) -> str:
    """Return mean and standard deviation of values as text; one value has none."""
    if len(values) == 1:
        return f"{values[0]:.2f}{unit} (one run)"
    return f"{statistics.mean(values):6.2f} +- {statistics.stdev(values):.2f}{unit}"


def seeds_in_words(num_seeds: int) -> str:
    """Return what figures with a deviation are over."""
    seeds = "one seed" if num_seeds == 1 else f"mean and deviation over {num_seeds} seeds"
    return f"students: {seeds}; equal architecture, equal number of updates"
