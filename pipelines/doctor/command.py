"""`decant doctor` from the words of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from pipelines.doctor.checkup import TIMEOUT_SECONDS, check_up
from pipelines.doctor.describe import describe_examination
from storage.config import ExperimentConfig, load_config
from storage.errors import ConfigError, DecantError


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the config, which comes before all options of Beam's where there is one, and the rest."""
    if words and not words[0].startswith("-"):
        return words[0], list(words[1:])
    return None, list(words)


def run_doctor(
    words: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    workers: int | None = None,
    num_elements: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    progress: bool = False,
) -> dict[str, Any]:
    """Examine this machine and an engine, and return figures, and words under "text".

    Args:
        words: a config, or none, and options of Beam.
        overrides: of keys of the config.
        workers: processes on this machine, on the local runner; None: `generation.workers`.

    Raises:
        ConfigError: a config that cannot be read, or options that cannot be used.
    """
    path, beam_arguments = split_words(words)
    for name, number in (("--workers", workers), ("--elements", num_elements), ("--timeout", timeout_seconds)):
        if number is not None and number <= 0:
            raise ConfigError(f"{name} {number:g}: nothing can be examined so; give more than 0")
    config: ExperimentConfig | None = None
    if path is not None:
        config = load_config(path, overrides=overrides)
    elif overrides:
        raise ConfigError(f"--set {overrides[0]}: there is no config whose key this is; give its path before other options")
    options = None
    if find_spec("apache_beam") is not None:
        from pipelines.engine import pipeline_options

        options = pipeline_options(beam_arguments)
    elif beam_arguments:
        raise DecantError(f"{' '.join(beam_arguments)}: options of Beam, which is not installed; pip install 'decant[label]'")
    return describe_examination(
        check_up(
            config,
            options=options,
            workers=workers or (1 if config is None else config.generation.workers),
            num_elements=num_elements,
            timeout_seconds=timeout_seconds,
            progress=progress,
        )
    )
