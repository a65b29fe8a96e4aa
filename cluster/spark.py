"""A standalone Spark cluster: its distribution, its processes, and how jobs are submitted to it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from cluster import pages
from cluster.downloads import jars_of_package
from cluster.flink import java
from cluster.hosts import Host
from cluster.processes import Service

SPARK_VERSION = "3.5.6"

_SCALA_VERSION = "2.12"
_HEAP_MEBIBYTES = 256
_WORKER_CORES = 2
"""A driver takes one; the executor of its host has what is left."""
_WORKER_MEMORY = "3g"

# What Spark's own start scripts give Java 17.
_OPENED = (
    "java.base/java.lang",
    "java.base/java.lang.invoke",
    "java.base/java.lang.reflect",
    "java.base/java.io",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/sun.nio.ch",
    "java.base/sun.nio.cs",
    "java.base/sun.security.action",
    "java.base/sun.util.calendar",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SparkAddresses:
    """Where the master listens: "host:port" each, of one host."""

    master: str
    rest: str
    page: str


def distribution(downloads: Path) -> Path:
    """Return the folder of Spark's jars, out of the Python package that carries them; it is downloaded once.

    Raises:
        ClusterError: it cannot be downloaded, or is not what was expected.
    """
    return jars_of_package(
        f"pyspark=={SPARK_VERSION}",
        folder=downloads / f"spark-{SPARK_VERSION}" / "jars",
        within="/deps/jars/",
        expected=f"spark-core_{_SCALA_VERSION}-{SPARK_VERSION}.jar",
        size_mb=320,
    )


def _environment(lib: Path, *, host: str, known: Path, pool_name: str) -> dict[str, str]:
    """Return the variables of a Spark process and of those that it starts: drivers and executors inherit them."""
    known.parent.mkdir(parents=True, exist_ok=True)
    names = {"localhost": "127.0.0.1", socket.gethostname(): host, pool_name: host}
    known.write_text("".join(f"{address} {name}\n" for name, address in names.items()))
    opened = " ".join(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED)
    return {
        "SPARK_HOME": str(lib.parent),
        "SPARK_LOCAL_IP": host,
        "SPARK_SCALA_VERSION": _SCALA_VERSION,
        # Where else could a Java be told that starts long after, from a master's description of a job?
        "JDK_JAVA_OPTIONS": f"{opened} -Djdk.net.hosts.file={known}",
    }


def _command(lib: Path, *options: str) -> tuple[str, ...]:
    return (java(), f"-Xmx{_HEAP_MEBIBYTES}m", "-XX:+UseSerialGC", *options, "-cp", f"{lib}/*")


def master(lib: Path, *, addresses: SparkAddresses, scratch: Path, pool_name: str) -> Service:
    """Return the master's process; it takes jobs over REST.

    Args:
        scratch: folder for what it keeps while it runs.
    """
    host, _, port = addresses.master.rpartition(":")
    rest = ("-Dspark.master.rest.enabled=true", f"-Dspark.master.rest.port={addresses.rest.rpartition(':')[2]}")
    page = addresses.page.rpartition(":")[2]
    main = ("org.apache.spark.deploy.master.Master", "--host", host, "--port", port, "--webui-port", page)
    return Service(
        name="spark-master",
        command=(*_command(lib, *rest), *main),
        environment=_environment(lib, host=host, known=scratch / "master.hosts", pool_name=pool_name),
        address=addresses.rest,
        host="master",
    )


def worker(lib: Path, *, host: Host, addresses: SparkAddresses, scratch: Path, pool_name: str) -> Service:
    """Return the process of a host's worker, which starts drivers and executors there.

    Args:
        scratch: folder for what jobs bring along and spill.
        pool_name: host name that there means the host itself.
    """
    name = f"spark-worker-{host.number}"
    sizes = ("--cores", str(_WORKER_CORES), "--memory", _WORKER_MEMORY, "--webui-port", "0")
    place = ("--host", host.address, "--work-dir", str(scratch / name))
    main = ("org.apache.spark.deploy.worker.Worker", f"spark://{addresses.master}", *place, *sizes)
    return Service(
        name=name,
        command=(*host.enter, *_command(lib), *main),
        environment=_environment(lib, host=host.address, known=scratch / f"{name}.hosts", pool_name=pool_name),
        host=host.address,
    )


def num_workers(addresses: SparkAddresses) -> int:
    """Return how many workers the master says are alive; 0 while it does not answer."""
    state = pages.ask(f"http://{addresses.page}/json/")
    return 0 if state is None else int(state["aliveworkers"])


def submission_arguments(*, addresses: SparkAddresses, jar: Path, pool: str) -> list[str]:
    """Return the options with which `decant label` runs on the cluster.

    Args:
        jar: of Beam's job server for Spark.
        pool: "name:port" of the worker pool on each host.
    """
    return [
        "--runner=SparkRunner",
        "--spark_submit_uber_jar",
        f"--spark_rest_url=http://{addresses.rest}",
        f"--spark_master_url=spark://{addresses.master}",
        f"--spark_job_server_jar={jar}",
        "--environment_type=EXTERNAL",
        f"--environment_config={pool}",
    ]
