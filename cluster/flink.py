"""A standalone Flink cluster: its distribution, its configuration and its processes."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster import pages
from cluster.downloads import find_program, jars_of_package
from cluster.hosts import Host
from cluster.processes import Service

FLINK_VERSION = "1.19.3"
FLINK_MINOR = FLINK_VERSION.rpartition(".")[0]

_MEBIBYTE = 2**20

_JAVA_REMEDY = "install a JDK or JRE 17, which runs Flink (Debian: apt-get install openjdk-17-jre-headless)"

# What Flink's own start scripts give Java 17.
_EXPORTED = ("java.base/sun.net.util", "java.rmi/sun.rmi.registry", "java.security.jgss/sun.security.krb5")
_OPENED = (
    "java.lang",
    "java.lang.reflect",
    "java.net",
    "java.io",
    "java.nio",
    "java.text",
    "java.time",
    "java.util",
    "java.util.concurrent",
    "java.util.concurrent.atomic",
    "java.util.concurrent.locks",
    "sun.nio.ch",
)

_LOG4J = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %-5p %c{1} - %m%n
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlinkMemory:
    """How much memory the processes take; small, since several hosts share one machine.

    A TaskManager needs every part of its memory by name: without Flink's start scripts nothing else works the rest out.
    """

    job_manager_heap_bytes: int = 384 * _MEBIBYTE
    framework_heap_bytes: int = 128 * _MEBIBYTE
    task_heap_bytes: int = 192 * _MEBIBYTE
    managed_bytes: int = 64 * _MEBIBYTE
    network_bytes: int = 64 * _MEBIBYTE
    off_heap_bytes: int = 64 * _MEBIBYTE
    """Twice: for the framework and for tasks."""
    metaspace_bytes: int = 256 * _MEBIBYTE
    overhead_bytes: int = 64 * _MEBIBYTE

    def task_manager_options(self) -> dict[str, str]:
        """Return Flink's options for a TaskManager."""
        memory = {
            "framework.heap.size": self.framework_heap_bytes,
            "task.heap.size": self.task_heap_bytes,
            "managed.size": self.managed_bytes,
            "network.min": self.network_bytes,
            "network.max": self.network_bytes,
            "framework.off-heap.size": self.off_heap_bytes,
            "task.off-heap.size": self.off_heap_bytes,
            "jvm-metaspace.size": self.metaspace_bytes,
            "jvm-overhead.min": self.overhead_bytes,
            "jvm-overhead.max": self.overhead_bytes,
        }
        return {f"taskmanager.memory.{name}": f"{num_bytes}b" for name, num_bytes in memory.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class FlinkAddresses:
    """Where the JobManager listens: "host:port" each, of one host."""

    rest: str
    rpc: str
    blob: str


def distribution(downloads: Path) -> Path:
    """Return the folder of Flink's jars, out of the Python package that carries them; it is downloaded once.

    Raises:
        ClusterError: it cannot be downloaded, or is not what was expected.
    """
    requirement = f"apache-flink-libraries=={FLINK_VERSION}"
    return jars_of_package(
        requirement,
        folder=downloads / f"flink-{FLINK_VERSION}",
        within="/deps/lib/",
        expected=f"flink-dist-{FLINK_VERSION}.jar",
        size_mb=230,
    )


def write_config(folder: Path, *, scratch: Path, addresses: FlinkAddresses, num_hosts: int, num_slots: int) -> None:
    """Write Flink's configuration for all its processes, into the folder that `--configDir` takes.

    Args:
        scratch: folder for what jobs bring along and spill.
    """
    host, _, rest_port = addresses.rest.rpartition(":")
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "jobmanager.rpc.address": host,
        "jobmanager.rpc.port": int(addresses.rpc.rpartition(":")[2]),
        "jobmanager.bind-host": host,
        "blob.server.port": addresses.blob.rpartition(":")[2],
        "rest.address": host,
        "rest.port": int(rest_port),
        "rest.bind-address": host,
        "rest.bind-port": rest_port,
        "taskmanager.numberOfTaskSlots": num_slots,
        "parallelism.default": num_hosts * num_slots,
        # A job outlives the loss of a TaskManager or of its workers; what was committed before is not computed again.
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": 5,
        "restart-strategy.fixed-delay.delay": "5 s",
        # A TaskManager that is gone is noticed, and its slots are asked for again, in seconds.
        "heartbeat.interval": 2000,
        "heartbeat.timeout": 10000,
        "io.tmp.dirs": str(scratch),
        "web.upload.dir": str(scratch),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    (folder / "log4j.properties").write_text(_LOG4J)


def java() -> str:
    """Return the path of Java.

    Raises:
        ClusterError: it is not there.
    """
    return find_program("java", remedy=_JAVA_REMEDY)


def _java_command(lib: Path, *, config: Path, heap_bytes: int, options: list[str]) -> list[str]:
    opened = [
        *(f"--add-exports={package}=ALL-UNNAMED" for package in _EXPORTED),
        *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
    ]
    return [
        java(),
        f"-Xmx{heap_bytes // _MEBIBYTE}m",
        "-XX:+UseSerialGC",
        # Compiling longer costs more than it gains in jobs of minutes, on the cores that the workers need.
        "-XX:TieredStopAtLevel=1",
        *options,
        *opened,
        f"-Dlog4j.configurationFile={(config / 'log4j.properties').as_uri()}",
        "-cp",
        f"{lib}/*",
    ]


def _write_hosts(path: Path, *, names: dict[str, str]) -> str:
    """Write which address a host name has, and return the option with which Java knows these names and no others."""
    path.write_text("".join(f"{address} {name}\n" for name, address in names.items()))
    return f"-Djdk.net.hosts.file={path}"


def job_manager(lib: Path, *, config: Path, addresses: FlinkAddresses, memory: FlinkMemory) -> Service:
    """Return the JobManager's process; it serves Flink's page and takes jobs."""
    # It hands the files of jobs to itself, by way of `localhost`, and listens on its own address alone.
    host = addresses.rest.rpartition(":")[0]
    known = _write_hosts(config / "job-manager.hosts", names={"localhost": host, socket.gethostname(): host})
    command = _java_command(lib, config=config, heap_bytes=memory.job_manager_heap_bytes, options=[known])
    main = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
    return Service(
        name="job-manager", command=(*command, main, "--configDir", str(config)), address=addresses.rest, host="job manager"
    )


def task_manager(lib: Path, *, config: Path, host: Host, pool_name: str, memory: FlinkMemory) -> Service:
    """Return the process of a host's TaskManager.

    Args:
        pool_name: host name that there means the host itself.
    """
    name = f"task-manager-{host.number}"
    names = {"localhost": "127.0.0.1", socket.gethostname(): host.address, pool_name: host.address}
    known = _write_hosts(config / f"{name}.hosts", names=names)
    direct = memory.network_bytes + 2 * memory.off_heap_bytes
    command = _java_command(
        lib,
        config=config,
        heap_bytes=memory.framework_heap_bytes + memory.task_heap_bytes,
        options=[
            f"-XX:MaxDirectMemorySize={direct}",
            f"-XX:MaxMetaspaceSize={memory.metaspace_bytes}",
            known,
        ],
    )
    options = {
        **memory.task_manager_options(),
        "taskmanager.cpu.cores": "1.0",
        "taskmanager.host": host.address,
        "taskmanager.bind-host": host.address,
        "taskmanager.resource-id": name,
    }
    given = [word for option, value in options.items() for word in ("-D", f"{option}={value}")]
    main = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
    return Service(name=name, command=(*host.enter, *command, main, "--configDir", str(config), *given), host=host.address)


def ask(rest: str, path: str) -> dict[str, Any] | None:
    """Return what Flink's REST interface answers, None while nothing answers there."""
    return pages.ask(f"http://{rest}/v1/{path}")


def num_free_slots(rest: str) -> int:
    """Return how many slots of how many TaskManagers wait for work; 0 while the JobManager does not answer."""
    overview = ask(rest, "overview")
    return 0 if overview is None else int(overview["slots-available"])
