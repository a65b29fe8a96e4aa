"""Beam's job server for Flink, a jar from Maven: it translates pipelines into Flink jobs.

Submitted as a whole ("uber jar") it travels with the pipeline to the JobManager; otherwise it runs as a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from cluster.downloads import find_program, made_whole, run_program
from cluster.errors import ClusterError
from cluster.flink import FLINK_MINOR, java
from cluster.processes import Service

LIBRARY_VERSION = "2.62.0"
"""Of Beam's runner library out of which the jar is made where the job server itself is not to be had; see pom.xml."""

_POM = Path(__file__).with_name("pom.xml")
_MVN_REMEDY = "install Maven (Debian: apt-get install maven), or give the job server's jar with --job-server-jar"
_NETWORK_REMEDY = "check the network, or Maven's settings.xml for a mirror, or give the job server's jar with --job-server-jar"


def job_server_jar(downloads: Path) -> Path:
    """Return the jar of Beam's job server for Flink; it is downloaded once.

    The official one of the installed Beam is taken where the Maven repository has it. Some mirrors hold Beam's libraries only:
    then the same program is packed from them, of the release that pom.xml names.

    Raises:
        ClusterError: Maven is not there, or neither of both can be had.
    """
    artifact = f"beam-runners-flink-{FLINK_MINOR}-job-server"
    version = importlib.metadata.version("apache-beam")
    official = downloads / f"{artifact}-{version}" / f"{artifact}-{version}.jar"
    packed = downloads / f"{artifact}-{LIBRARY_VERSION}-packed" / f"{artifact}-{LIBRARY_VERSION}-packed.jar"
    for jar in (official, packed):
        if jar.exists():
            return jar
    mvn = find_program("mvn", remedy=_MVN_REMEDY)
    try:
        with made_whole(official.parent) as scratch:
            coordinates = f"org.apache.beam:{artifact}:{version}"
            run_program(
                [mvn, "-q", "-B", "dependency:copy", f"-Dartifact={coordinates}", f"-DoutputDirectory={scratch}"],
                doing=f"downloading {coordinates} from the Maven repository",
                remedy=_NETWORK_REMEDY,
                folder=scratch,
            )
        return official
    except ClusterError as not_there:
        try:
            with made_whole(packed.parent) as scratch:
                shutil.copy(_POM, scratch / "pom.xml")
                run_program(
                    [mvn, "-q", "-B", "package", f"-Dbeam.version={LIBRARY_VERSION}", f"-Dflink.minor={FLINK_MINOR}"],
                    doing=f"packing the job server from Beam's library {LIBRARY_VERSION} (160 MB from the Maven repository)",
                    remedy=_NETWORK_REMEDY,
                    folder=scratch,
                )
                (scratch / "target" / "flink-job-server-1.jar").rename(scratch / packed.name)
                shutil.rmtree(scratch / "target")
        except ClusterError as error:
            raise ClusterError(f"{not_there}\nand {error}") from error
        return packed


def job_server(jar: Path, *, rest: str, address: str, scratch: Path, heap_bytes: int) -> Service:
    """Return the process of a job server: `--job_endpoint` takes its address.

    Args:
        rest: "host:port" of the JobManager.
        scratch: folder for what submitters stage.
    """
    host, _, port = address.rpartition(":")
    options = {
        "--flink-master": rest,
        "--job-host": host,
        "--job-port": port,
        "--artifact-port": "0",
        "--expansion-port": "0",
        "--artifacts-dir": str(scratch),
    }
    given = [word for pair in options.items() for word in pair]
    return Service(
        name="job-server",
        command=(java(), f"-Xmx{heap_bytes >> 20}m", "-XX:+UseSerialGC", "-jar", str(jar), *given),
        address=address,
        host="job manager",
    )
