"""The doctor before a run: errors stop it before any work, warnings are said."""

from __future__ import annotations

from collections.abc import Callable

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.doctor.checkup import TIMEOUT_SECONDS, check_up
from storage.config import ExperimentConfig
from storage.errors import DecantError


class PreflightError(DecantError):
    """Something stands in the way of a run on this engine."""


def preflight(
    config: ExperimentConfig,
    *,
    options: PipelineOptions,
    say: Callable[[str], None],
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Send a tiny job through the engine that is to label, and say what is to look at.

    Args:
        say: is called with each line a person should read.

    Raises:
        PreflightError: something would keep workers from labelling; the message has all of it.
    """
    found = check_up(config, options=options, workers=config.generation.workers, timeout_seconds=timeout_seconds, progress=True)
    for finding in found.findings:
        if finding.level == "warning":
            say(f"warning: {finding.topic}: {finding.in_words()}")
    if found.errors:
        lines = "\n".join(f"  {finding.topic}: {finding.in_words()}" for finding in found.errors)
        raise PreflightError(
            f"preflight: {len(found.errors)} in the way, nothing was labelled:\n{lines}\n"
            "decant doctor with the same options says more"
        )
    for finding in found.findings:
        if finding.topic == "workers":
            say(f"preflight: {finding.in_words()}; nothing in the way")
