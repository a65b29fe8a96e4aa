"""Spark: is the master there, and is it one that Beam's job server can use."""

from __future__ import annotations

import re

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, SparkRunnerOptions

from pipelines.engine.addresses import parse_address, why_silent
from pipelines.engine.environment import check_environment
from pipelines.engine.rest import SilentError, ask
from storage.errors import ConfigError

_LOCAL = re.compile(r"local(\[.+\])?")


def check_spark(options: PipelineOptions) -> list[str]:
    """Refuse a Spark that does not answer, or of another major version than Beam's job server.

    Raises:
        ConfigError: see above, or workers cannot be started as asked.
    """
    spark = options.view_as(SparkRunnerOptions)
    if options.view_as(PortableOptions).job_endpoint is not None:
        return []
    if spark.spark_submit_uber_jar:
        _check_rest(spark.spark_rest_url)
        check_environment(options, engine=parse_address(spark.spark_rest_url))
        return []
    master = str(spark.spark_master_url)
    if _LOCAL.fullmatch(master):
        return []
    address = parse_address(master)
    if address is not None and master.startswith("spark://"):
        reason = why_silent(address)
        if reason is not None:
            raise ConfigError(
                f"--spark_master_url {master}: no Spark answers there ({reason}); start its master, or correct host and port "
                "(7077 by default)"
            )
    check_environment(options, engine=address)
    return []


def _check_rest(url: str | None) -> None:
    if not url or parse_address(url) is None:
        raise ConfigError(
            f"--spark_submit_uber_jar submits over Spark's REST, and --spark_rest_url is {url!r}; give http://HOST:6066, of a "
            "master with spark.master.rest.enabled=true"
        )
    try:
        said = ask(f"{url.rstrip('/')}/v1/submissions/status/none")
    except SilentError as error:
        raise ConfigError(
            f"--spark_rest_url {url}: no Spark answers there ({error}); start its master with spark.master.rest.enabled=true, or "
            "correct host and port (6066 by default)"
        ) from error
    version = said.get("serverSparkVersion") if isinstance(said, dict) else None
    if not isinstance(version, str):
        raise ConfigError(f"--spark_rest_url {url}: what answers there is no Spark; give http://HOST:6066 of a Spark master")
    if version.split(".")[0] != "3":
        raise ConfigError(
            f"--spark_rest_url {url} runs Spark {version}, and the job server of Beam {beam.version.__version__} is made for "
            "Spark 3; use a cluster of Spark 3"
        )
