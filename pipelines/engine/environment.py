"""How workers are started (Beam's `--environment_type`), checked before an engine is given work."""

from __future__ import annotations

import json

from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, WorkerOptions

from pipelines.engine.addresses import Address, parse_address, why_refused, why_silent
from storage.errors import ConfigError

_TYPES = ("EXTERNAL", "DOCKER", "PROCESS", "LOOPBACK")
_CHOICES = (
    "--environment_type=EXTERNAL --environment_config=HOST:PORT where a worker pool runs on each host (`python -m "
    "apache_beam.runners.worker.worker_pool_main --service_port=PORT`, HOST as that host's engine sees it), or "
    "--environment_type=DOCKER --environment_config=IMAGE where hosts have Docker"
)


def check_environment(options: PipelineOptions, *, engine: Address | None) -> None:
    """Refuse workers that cannot be started as asked.

    Args:
        engine: where the cluster is asked; None: not known, or in a process of this command.

    Raises:
        ConfigError: no type is named, one that does not fit the engine, or a worker pool that does not answer.
    """
    portable = options.view_as(PortableOptions)
    named = portable.environment_type
    if named is None:
        if options.view_as(WorkerOptions).sdk_container_image:
            return
        # Beam would take a Docker image of its own, in which there is no decant.
        raise ConfigError(f"a cluster must be told how its workers start, and --environment_type is not given; use {_CHOICES}")
    if named.upper() not in _TYPES:
        # Beam also takes the name of a class or a URN; whoever writes one knows why.
        return
    if named.upper() == "LOOPBACK" and engine is not None and not engine.is_loopback:
        raise ConfigError(
            f"--environment_type LOOPBACK runs workers in this process, where the cluster at {engine} cannot reach them; use "
            f"{_CHOICES}"
        )
    if named.upper() == "EXTERNAL":
        pool = worker_pool(options)
        reason = why_refused(pool) if _can_judge(pool, engine=engine) else None
        if reason is not None:
            raise ConfigError(
                f"--environment_config {pool}: no worker pool answers there ({reason}); start one with `python -m "
                f"apache_beam.runners.worker.worker_pool_main --service_port={pool.port}`, or correct host and port"
            )


def worker_pool(options: PipelineOptions) -> Address:
    """Return where `EXTERNAL` workers are started.

    Raises:
        ConfigError: no address is given.
    """
    portable = options.view_as(PortableOptions)
    text = portable.environment_config or portable.lookup_environment_option("external_service_address") or ""
    if text.strip().startswith("{"):
        try:
            text = str(json.loads(text).get("url", ""))
        except ValueError as error:
            raise ConfigError(f"--environment_config {text}: this is no JSON ({error}); use HOST:PORT") from error
    address = parse_address(text)
    if address is None:
        raise ConfigError(
            f"--environment_type EXTERNAL needs the address of a worker pool, not {text!r}; give --environment_config=HOST:PORT"
        )
    return address


def watched_pool(options: PipelineOptions, *, engine: Address | None) -> Address | None:
    """Return the worker pool that can be seen from here while a job runs, and answers now; None: there is none."""
    if (options.view_as(PortableOptions).environment_type or "").upper() != "EXTERNAL":
        return None
    pool = worker_pool(options)
    return pool if _can_judge(pool, engine=engine) and why_silent(pool) is None else None


def _can_judge(pool: Address, *, engine: Address | None) -> bool:
    """Return whether a pool's address means the same from here as from the engine's hosts."""
    return not pool.is_loopback or engine is None or engine.is_loopback
