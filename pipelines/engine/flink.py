"""Flink: a cluster is asked over its REST before anything is planned, and followed there while a job runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import FlinkRunnerOptions, JobServerOptions, PipelineOptions, PortableOptions

from pipelines.engine.addresses import Address, parse_address
from pipelines.engine.environment import check_environment
from pipelines.engine.flink_jar import flink_of_jar
from pipelines.engine.rest import SilentError, ask
from storage.errors import ConfigError

LOCAL_MASTERS = ("[local]", "[auto]")
"""Masters that Beam's job server starts itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """Places in which a cluster can work."""

    free: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FlinkMaster:
    """The REST of a job manager."""

    url: str

    @classmethod
    def of(cls, options: PipelineOptions) -> FlinkMaster | None:
        """Return the cluster that options name; None where the job server starts a Flink of its own.

        Raises:
            ConfigError: the master is no address.
        """
        master = str(options.view_as(FlinkRunnerOptions).flink_master).strip().rstrip("/")
        if master in LOCAL_MASTERS:
            return None
        if parse_address(master) is None:
            raise ConfigError(f"--flink_master {master}: this is no address; give HOST:PORT of the job manager's REST")
        return cls(url=master if "://" in master else f"http://{master}")

    @property
    def address(self) -> Address:
        """Host and port."""
        found = parse_address(self.url)
        assert found is not None
        return found

    def version(self) -> str:
        """Return the Flink version of the cluster, as `1.20.5`.

        Raises:
            ConfigError: nobody answers, or something else than a Flink.
        """
        said = self._ask("v1/config")
        version = said.get("flink-version") if isinstance(said, dict) else None
        if not isinstance(version, str):
            raise ConfigError(f"--flink_master {self.url}: what answers is no Flink; give HOST:PORT of a job manager's REST")
        return version

    def slots(self) -> Slots:
        """Return how many slots there are.

        Raises:
            ConfigError: nobody answers.
        """
        said = self._ask("v1/overview")
        return Slots(free=int(said.get("slots-available", 0)), total=int(said.get("slots-total", 0)))

    def _ask(self, path: str) -> Any:
        try:
            return ask(f"{self.url}/{path}")
        except SilentError as error:
            raise ConfigError(
                f"--flink_master {self.url}: no Flink answers there ({error}); start its job manager, or correct host and port "
                "(the REST port, 8081 by default)"
            ) from error


def check_flink(options: PipelineOptions, *, given: frozenset[str]) -> list[str]:
    """Ask the cluster, and fill in what a command line may leave out. Returns words for the user.

    Args:
        given: names of the options that the user wrote.

    Raises:
        ConfigError: no Flink answers, its version is not the job server's, or workers cannot be started as asked.
    """
    flink = options.view_as(FlinkRunnerOptions)
    jar = flink.flink_job_server_jar
    made_for = flink_of_jar(jar) if jar else None
    master = FlinkMaster.of(options)
    if master is None:
        return []
    version = master.version()
    minor = ".".join(version.split(".")[:2])
    if options.view_as(PortableOptions).job_endpoint is None:
        _check_version(options, cluster=f"{master.url} runs Flink {version}", minor=minor, made_for=made_for, given=given)
        # Only a job server's own process needs a folder for artifacts, which all hosts must then share.
        if options.view_as(JobServerOptions).artifacts_dir is None:
            flink.flink_submit_uber_jar = True
    check_environment(options, engine=master.address)
    slots = master.slots()
    if "parallelism" not in given and slots.total:
        # Flink's own default is 1.
        flink.parallelism = max(slots.free, 1)
    if slots.total and not slots.free:
        return [f"all {slots.total} slots of the Flink at {master.url} are taken: the job waits until one is free"]
    if not slots.total:
        return [f"the Flink at {master.url} has no task manager yet: the job waits until one has registered"]
    return []


def _check_version(options: PipelineOptions, *, cluster: str, minor: str, made_for: str | None, given: frozenset[str]) -> None:
    flink = options.view_as(FlinkRunnerOptions)
    artifact = f"org.apache.beam:beam-runners-flink-{minor}-job-server:{beam.version.__version__}"
    if made_for is not None and made_for != minor:
        raise ConfigError(
            f"--flink_job_server_jar {flink.flink_job_server_jar} is made for Flink {made_for}, but {cluster}: minor "
            f"versions must be equal. Use the jar for {minor} ({artifact}), or a cluster of Flink {made_for}"
        )
    if "flink_version" in given and flink.flink_version != minor:
        raise ConfigError(
            f"--flink_version {flink.flink_version} was asked for, but {cluster}: minor versions must be equal. Use "
            f"--flink_version={minor}, or leave it out, or use a cluster of Flink {flink.flink_version}"
        )
    if flink.flink_job_server_jar is None and minor not in flink.PUBLISHED_FLINK_VERSIONS:
        published = ", ".join(flink.PUBLISHED_FLINK_VERSIONS)
        raise ConfigError(
            f"{cluster}, for which Beam {beam.version.__version__} has no job server (only for {published}); use such a Flink, "
            f"or give a jar for {minor} with --flink_job_server_jar"
        )
    if minor in flink.PUBLISHED_FLINK_VERSIONS:
        flink.flink_version = minor
