"""The whole cluster: brought up in order, described, taken down."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster import flink
from cluster.errors import ClusterError
from cluster.flink import FLINK_MINOR, FlinkAddresses, FlinkMemory
from cluster.hosts import Host, Hosts, check_own_networks, hosts_on_loopback, hosts_with_own_networks
from cluster.job_server import FLINK_JOB_SERVER, job_server, job_server_jar
from cluster.object_store import BUCKET, make_bucket, object_store, store_environment
from cluster.ports import answers, free_address, free_addresses
from cluster.processes import MARK, Processes, end_strays
from cluster.shipping import INSTALLED, entry_point, option_that_ships, python_without_decant, write_start_script
from cluster.worker_pools import OWN_POOL_PORT, POOL_NAME, own_worker_pool, pool_port, worker_pool

_REGISTER_SECONDS = 120.0
_COMPLETE = "complete"
"""The fact that a cluster was brought up to the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a cluster is made of.

    Attributes:
        num_hosts: hosts with a TaskManager and a worker pool each.
        workers_per_host: Python processes a host, and slots of its TaskManager.
        rest_port: of Flink's page; 0 for one that is free.
        with_job_server: also run Beam's job server as a process.
        own_networks: hosts have networks and disks of their own instead of addresses on loopback.
        code: how workers get Decant, one of `CODES`.
    """

    num_hosts: int = 2
    workers_per_host: int = 1
    rest_port: int = 0
    with_job_server: bool = False
    own_networks: bool = False
    code: str = INSTALLED


def without_proxies(hosts: Hosts) -> dict[str, str]:
    """Return what keeps connections inside this machine off the proxies of a person's environment."""
    addresses = [hosts.center, *(host.address for host in hosts.workers)]
    names = ",".join(dict.fromkeys(["localhost", "127.0.0.1", POOL_NAME, *addresses]))
    return {"NO_PROXY": names, "no_proxy": names}


def bring_up(folder: Path, *, shape: Shape, downloads: Path, jar: Path | None = None, say: Callable[[str], None]) -> Processes:
    """Start a cluster and return when it can take jobs.

    Args:
        folder: its state, logs and scratch space.
        downloads: what is fetched once lies there.
        jar: of Beam's job server; None downloads it.

    Raises:
        ClusterError: something is missing, or does not start; nothing is left running.
    """
    flink.java()
    if shape.own_networks:
        check_own_networks()
    program = None
    if shape.code != INSTALLED:
        if shape.workers_per_host > 1:
            raise ClusterError(
                f"--code {shape.code}: workers of one host would install what a job brings at the same time, into one "
                "environment; leave out --workers-per-host"
            )
        program = entry_point(downloads)
    jar = job_server_jar(FLINK_JOB_SERVER, downloads=downloads) if jar is None else jar.resolve()
    if not jar.exists():
        raise ClusterError(f"--job-server-jar {jar}: there is no such file")
    lib = flink.distribution(downloads)
    processes = Processes.create(folder)
    try:
        _start(processes, shape=shape, lib=lib, jar=jar, program=program, say=say)
        processes.facts[_COMPLETE] = "yes"
        processes.save()
    except BaseException:
        processes.stop_all()
        raise
    return processes


def _start(processes: Processes, *, shape: Shape, lib: Path, jar: Path, program: Path | None, say: Callable[[str], None]) -> None:
    folder = processes.folder.resolve()
    if shape.own_networks:
        hosts = hosts_with_own_networks(processes, num_hosts=shape.num_hosts)
        pool = f"localhost:{OWN_POOL_PORT}"
    else:
        hosts = hosts_on_loopback(shape.num_hosts)
        pool = f"{POOL_NAME}:{pool_port([host.address for host in hosts.workers])}"
    os.environ.update(without_proxies(hosts))
    rest, rpc, blob, store, endpoint = free_addresses(hosts.center, count=5)
    if shape.rest_port:
        rest = free_address(hosts.center, port=shape.rest_port)
    addresses = FlinkAddresses(rest=rest, rpc=rpc, blob=blob)
    cores = os.cpu_count() or 1
    environment = {
        **store_environment(store),
        **without_proxies(hosts),
        "OMP_NUM_THREADS": str(max(1, cores // (shape.num_hosts * shape.workers_per_host))),
    }
    memory = FlinkMemory()
    config = folder / "flink"
    flink.write_config(
        config,
        scratch=processes.home("flink").resolve(),
        addresses=addresses,
        num_hosts=shape.num_hosts,
        num_slots=shape.workers_per_host,
    )
    processes.facts = {
        "flink": f"http://{rest}",
        "store": f"http://{store}",
        "bucket": f"s3://{BUCKET}",
        "pool": pool,
        "jar": str(jar),
        "hosts": str(shape.num_hosts),
        "workers_per_host": str(shape.workers_per_host),
        "disks": "\n".join(str(host.disk) for host in hosts.workers if host.disk is not None),
    }
    if program is not None:
        processes.facts["shipped"] = option_that_ships(shape.code, folder=processes.home("shipped").resolve())
    say(f"starting an object store, a JobManager, {shape.num_hosts} TaskManagers and {shape.num_hosts} worker pools in {folder}")
    processes.start(object_store(store))
    processes.start(flink.job_manager(lib, config=config, addresses=addresses, memory=memory))
    pools = []
    for host in hosts.workers:
        processes.start(flink.task_manager(lib, config=config, host=host, pool_name=POOL_NAME, memory=memory))
        python = None if program is None else _python_without_decant(processes, host=host, program=program)
        if hosts.are_apart:
            service = own_worker_pool(host, folder=folder, environment=environment, python=python)
        else:
            service = worker_pool(host, port=int(pool.rpartition(":")[2]), environment=environment, python=python)
        processes.start(service)
        pools.append(service.name)
    processes.wait_for_port("object-store")
    make_bucket(store)
    for name in pools:
        processes.wait_for_port(name)
    num_slots = shape.num_hosts * shape.workers_per_host
    processes.wait_for(
        [name for name in processes.started if name.startswith(("job-manager", "task-manager"))],
        ready=lambda: flink.num_free_slots(rest) == num_slots,
        what=f"not all of {num_slots} slots of TaskManagers are registered at {rest}",
        timeout_seconds=_REGISTER_SECONDS,
    )
    if shape.with_job_server:
        scratch = processes.home("artifacts").resolve()
        heap = memory.job_manager_heap_bytes
        processes.start(job_server(jar, rest=rest, address=endpoint, scratch=scratch, heap_bytes=heap))
        processes.wait_for_port("job-server")
        processes.facts["job_endpoint"] = endpoint
    processes.save()
    write_environment(processes, environment=environment)


def python_folder(processes: Processes, *, number: int) -> Path:
    """Return the environment without Decant that a host has, as it is seen from here."""
    return processes.home(f"disk-{number}").resolve() / "python"


def _python_without_decant(processes: Processes, *, host: Host, program: Path) -> Path:
    """Give a host an environment without Decant, and return where the host sees it."""
    python = python_folder(processes, number=host.number)
    python_without_decant(python)
    # A host with a disk of its own has it in the place of the cluster's folder.
    seen = python if host.disk is None else processes.folder.resolve() / "python"
    write_start_script(python, program=program, scratch=seen.parent)
    return seen


def submission_arguments(processes: Processes, *, through_job_server: bool) -> list[str]:
    """Return the options with which `decant label` runs on the cluster.

    Args:
        through_job_server: hand the pipeline to the job server's process; otherwise it goes to the JobManager as one jar.

    Raises:
        ClusterError: the cluster has no job server.
    """
    facts = processes.facts
    workers_per_host = int(facts["workers_per_host"])
    common = [
        "--environment_type=EXTERNAL",
        f"--environment_config={facts['pool']}",
        f"--parallelism={int(facts['hosts']) * workers_per_host}",
        f"--sdk_worker_parallelism={workers_per_host}",
        *([facts["shipped"]] if "shipped" in facts else []),
    ]
    if not through_job_server:
        master = facts["flink"].removeprefix("http://")
        jar = f"--flink_job_server_jar={facts['jar']}"
        return [
            "--runner=FlinkRunner",
            f"--flink_version={FLINK_MINOR}",
            f"--flink_master={master}",
            "--flink_submit_uber_jar",
            jar,
            *common,
        ]
    if "job_endpoint" not in facts:
        raise ClusterError("the cluster runs without a job server; bring it up with --job-server")
    return ["--runner=PortableRunner", f"--job_endpoint={facts['job_endpoint']}", *common]


def submission_environment(processes: Processes) -> dict[str, str]:
    """Return the variables of a submitter that belongs to the cluster, and is taken down with it."""
    pool = next(started.service for name, started in processes.started.items() if name.startswith("worker-pool"))
    shared = {name: value for name, value in pool.environment.items() if name not in {"PATH", "OMP_NUM_THREADS"}}
    return {**shared, MARK: processes.id}


def write_environment(processes: Processes, *, environment: dict[str, str]) -> Path:
    """Write what a shell sources before `decant label CONFIG $DECANT_ON_CLUSTER`."""
    options = shlex.join(submission_arguments(processes, through_job_server=False))
    values = {name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in {**values, "DECANT_ON_CLUSTER": options}.items()]
    path = processes.folder / "environment.sh"
    processes.undo_later(["rm", "-f", str(path.resolve())])
    path.write_text("\n".join(["unset AWS_PROFILE", *lines, ""]))
    return path


def take_down(folder: Path) -> int:
    """End the cluster of a folder, and return how many processes it had.

    Raises:
        ClusterError: its state cannot be read.
    """
    processes = Processes.find(folder)
    # A cluster whose folder was removed may run beside one that came into the folder after it.
    return (0 if processes is None else processes.stop_all()) + end_strays(folder)


def is_complete(processes: Processes) -> bool:
    """Return whether the cluster was brought up to the end: a command that is killed leaves some of its processes."""
    return _COMPLETE in processes.facts


def status_rows(processes: Processes) -> list[tuple[str, str, str, str]]:
    """Return (service, host, process id, state) of every service."""
    rows = []
    for name, started in processes.started.items():
        service = started.service
        state = "ended"
        if processes.is_alive(name):
            state = "runs"
            if service.address is not None:
                state = f"answers on {service.address}" if answers(service.address) else f"silent on {service.address}"
        rows.append((name, service.host, str(started.pid), state))
    return rows
