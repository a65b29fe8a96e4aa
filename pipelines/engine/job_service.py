"""Beam's job service (`--job_endpoint`): is it there before work starts, and while it goes on."""

from __future__ import annotations

import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from pipelines.engine.addresses import Address, parse_address, why_silent
from pipelines.engine.environment import check_environment, watched_pool
from pipelines.engine.following import AddressWatch, Silence
from pipelines.engine.names import runner_name
from storage.errors import ConfigError

_EMBEDDED = "embed"
"""What Beam calls its own job service in this process."""
_ANSWER_SECONDS = 10


def job_service(options: PipelineOptions) -> Address | None:
    """Return where the job service is; None where Beam starts one in this process."""
    return parse_address(options.view_as(PortableOptions).job_endpoint or "")


def check_job_service(options: PipelineOptions) -> list[str]:
    """Refuse a job service that does not answer; Beam would try for minutes, and then not say what it tried.

    Raises:
        ConfigError: nobody answers, or workers cannot be started as asked.
    """
    address = job_service(options)
    if address is None:
        if options.view_as(PortableOptions).job_endpoint is None and runner_name(options) == "portablerunner":
            raise ConfigError(
                "--runner PortableRunner: nothing says where the job service is; give --job_endpoint=HOST:PORT, or another runner"
            )
        return []
    reason = why_silent(address)
    if reason is not None:
        raise ConfigError(
            f"--job_endpoint {address}: no job service answers there ({reason}); start it, or correct host and port"
        )
    # Prism's workers are in this process unless something else is said.
    if options.view_as(PortableOptions).environment_type or runner_name(options) != "prismrunner":
        check_environment(options, engine=address)
    return []


def watch_job_service(options: PipelineOptions) -> AddressWatch | None:
    """Return what must answer while a job runs: the job service, and its worker pool where that can be seen from here."""
    address = job_service(options)
    if address is None:
        return None
    watched = {
        address: Silence(
            what=f"the job service at {address} (--job_endpoint)",
            remedy="it, or its machine, has ended or cannot be reached any more: start it again",
        )
    }
    pool = watched_pool(options, engine=address)
    if pool is not None:
        watched[pool] = Silence(
            what=f"the worker pool at {pool} (--environment_config)",
            remedy="it was killed, or its machine ran out of memory (lower generation.batch_size): start it again",
        )
    return AddressWatch(watched=watched)


def waits_for_dead_workers(options: PipelineOptions) -> bool:
    """Return whether a job may wait for ever for a worker process that is gone: on Beam's own job services, in Python and Prism.

    Other engines notice it, and start another or let the job fail. Theirs say which options they know; Beam's own know none. One
    that does not answer now is left alone.
    """
    endpoint, address = options.view_as(PortableOptions).job_endpoint, job_service(options)
    if endpoint == _EMBEDDED or (endpoint is None and runner_name(options) == "prismrunner"):
        return True
    if address is None:
        return False
    try:
        with grpc.insecure_channel(str(address)) as channel:
            request = beam_job_api_pb2.DescribePipelineOptionsRequest()
            service = beam_job_api_pb2_grpc.JobServiceStub(channel)
            return not service.DescribePipelineOptions(request, timeout=_ANSWER_SECONDS).options
    except grpc.RpcError:
        return False
