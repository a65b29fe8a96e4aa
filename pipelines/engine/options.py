"""Read and check what a user gave for Beam, before anything is planned."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import create_runner

from pipelines.engine.dataflow import check_dataflow
from pipelines.engine.flink import check_flink
from pipelines.engine.job_service import check_job_service
from pipelines.engine.names import LOCAL_RUNNER, SWITCHING_RUNNERS, runner_name
from pipelines.engine.prism import check_prism
from pipelines.engine.spark import check_spark
from storage.command_line import set_hint
from storage.errors import ConfigError

_REFUSED_RUNNERS = {
    "daskrunner": "it drops elements of ordinary pipelines without an error",
    "interactiverunner": "it is for notebooks, and runs nothing by itself",
}
_SAFE_RUNNERS = "FnApiRunner, FlinkRunner, SparkRunner, PrismRunner, PortableRunner or DataflowRunner"
_OWNERS = {"flink_": "FlinkRunner", "spark_": "SparkRunner", "prism_": "PrismRunner"}
"""How names of options begin that one runner reads alone."""
_CHECKS: dict[str, Callable[[PipelineOptions], list[str]]] = {
    "dataflowrunner": check_dataflow,
    "prismrunner": check_prism,
    "sparkrunner": check_spark,
}


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Return Beam options: the user's own, with the local runner by name where none is given, and an engine's defaults.

    An engine elsewhere is asked whether it is there and fits; words of it that are no errors go to the terminal.

    Raises:
        ConfigError: a runner that does not exist or is known to lose data, arguments Beam does not know, or an engine that does
            not answer, is of another version, or cannot start workers as asked.
    """
    options = _parse(arguments)
    standard = options.view_as(StandardOptions)
    if standard.runner is None or runner_name(options) in SWITCHING_RUNNERS:
        standard.runner = LOCAL_RUNNER
    name = runner_name(options)
    reason = _REFUSED_RUNNERS.get(name)
    if reason is not None:
        raise ConfigError(f"--runner {standard.runner}: refused, {reason}. Use {_SAFE_RUNNERS}")
    try:
        create_runner(standard.runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigError(f"--runner {standard.runner}: there is no such runner here ({error}). Use {_SAFE_RUNNERS}") from error
    given = frozenset(word[2:].partition("=")[0] for word in arguments if word.startswith("--"))
    _refuse_options_of_others(name, given=given, runner=str(standard.runner))
    words = check_job_service(options)
    if name == "flinkrunner":
        words += check_flink(options, given=given)
    elif name in _CHECKS:
        words += _CHECKS[name](options)
    for word in words:
        sys.stderr.write(f"decant: {word}\n")
    return options


def _refuse_options_of_others(name: str, *, given: frozenset[str], runner: str) -> None:
    # Through a job service they reach the engine behind it.
    if name == "portablerunner":
        return
    for option in sorted(given):
        owner = next((owner for start, owner in _OWNERS.items() if option.startswith(start)), None)
        if owner is not None and owner.lower() != name:
            raise ConfigError(
                f"--{option} is of {owner}, and the job would run on {runner}, which does not read it; give --runner={owner}, or "
                "leave the option out"
            )


def _parse(arguments: Sequence[str]) -> PipelineOptions:
    remedy = "see `decant label --help` and Beam's pipeline options"
    # Beam drops what does not look like an option without a word.
    for before, word in pairwise(["", *arguments]):
        if not word.startswith("--") and (word.startswith("-") or not before.startswith("--") or "=" in before):
            raise ConfigError(f"{word!r} is neither an option nor the value of one{set_hint([word]) or f'; {remedy}'}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(list(arguments))
            unknown = options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys()
    except SystemExit as error:
        problem = said.getvalue().strip().rsplit("\n", 1)[-1].partition("error: ")[2]
        raise ConfigError(f"Beam cannot read {shlex.join(arguments)}: {problem}; {remedy}") from error
    if unknown:
        names = ", ".join(sorted(f"--{name}" for name in unknown))
        raise ConfigError(f"neither decant nor Beam knows {names}; {remedy}")
    return options
