"""Say in a line why a pipeline failed, out of the tracebacks of two languages."""

from __future__ import annotations

import re

from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

from storage import errors
from storage.errors import DecantError

_ERROR_LINE = re.compile(r"^(?:Caused by: )?(?P<name>[\w.$]+(?:Error|Exception|Interrupt|Exit)): ", re.MULTILINE)

_WHERE = re.compile(r"\s*\[while running '[^']*'\]")
_JAVA_FRAMES = re.compile(r"^\s+(?:at [\w.$/<>]+\(.*\)|\.\.\. \d+ more)\s*$\n?", re.MULTILINE)

_HINTS = {
    r"No module named '(?:pipelines|storage|decant)": "workers have no decant: install it on every worker as it is here, use the "
    "worker image, or, where Beam's entry point starts workers (docs/cluster.md), give --setup_file=./setup.py",
    r"Can't get attribute '\w+' on <module '(?:pipelines|storage)": "workers have another decant than this process: "
    "install the same version on every worker, and restart the worker pools",
    r"No module named '": "a worker lacks a package: install it on every worker as it is here",
    r"NoResourceAvailable": "Flink has no free slot for the job: start task managers, or give a smaller --parallelism",
    r"Unable to fetch remote job server jar": "give Beam's job server jar as --flink_job_server_jar=FILE or "
    "--spark_job_server_jar=FILE, or put it where the message says",
    r"ConnectionPool\(.*/v1/jars/": "the Flink of --flink_master ended, or cannot be reached any more, while the job was handed "
    "to it: start it again, and run the same command again",
    # Of other connections that are refused, a worker's own among them, nothing is known.
    r"UNAVAILABLE: io exception|ConnectException: .*Connection refused": "an engine's host does not reach its worker pool: start "
    "it on every host, at the address of --environment_config{pool}",
}


def failure_of(error: Exception, *, options: PipelineOptions | None = None) -> DecantError:
    """Return what went wrong in a worker, out of the traceback that Beam gives as an error's text.

    Args:
        options: of the pipeline, for the values that a remedy names.
    """
    given = None if options is None else options.view_as(PortableOptions).environment_config
    pool = "" if given is None else f" {given}"
    text = _WHERE.sub("", str(error).strip()).strip() or repr(error)
    if isinstance(error, DecantError):
        return type(error)(text)
    text = _JAVA_FRAMES.sub("", text).strip()
    # Java names the cause last, behind what it led to; so does Python.
    found = list(_ERROR_LINE.finditer(text))
    if not found:
        return DecantError(f"the pipeline failed: {_with_hint(text, pool=pool)}")
    last = found[-1]
    kind = getattr(errors, last["name"].removeprefix(f"{errors.__name__}."), None)
    if isinstance(kind, type) and issubclass(kind, DecantError):
        return kind(text[last.end() :].strip())
    return DecantError(f"the pipeline failed: {_with_hint(text[last.start('name') :].strip(), pool=pool)}")


def _with_hint(text: str, *, pool: str) -> str:
    """Add what is to be done about the failures that workers of a cluster have."""
    hint = next((hint for pattern, hint in _HINTS.items() if re.search(pattern, text)), None)
    return text if hint is None else f"{text}; {hint.replace('{pool}', pool)}"
