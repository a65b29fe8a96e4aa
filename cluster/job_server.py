"""Beam's job servers for Flink and Spark, jars from Maven: they translate pipelines into jobs of the engine.

Submitted as a whole ("uber jar") one travels with the pipeline to the engine; otherwise it runs as a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from cluster.downloads import find_program, made_whole, run_program
from cluster.errors import ClusterError
from cluster.flink import FLINK_MINOR, java
from cluster.processes import Service

LIBRARY_VERSION = "2.62.0"
"""Of Beam's runner libraries out of which a jar is made where the job server itself is not to be had; see maven/."""

_POMS = Path(__file__).with_name("maven")
_MVN_REMEDY = "install Maven (Debian: apt-get install maven), or give the job server's jar with --job-server-jar"
_NETWORK_REMEDY = "check the network, or Maven's settings.xml for a mirror, or give the job server's jar with --job-server-jar"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobServer:
    """One of Beam's job servers.

    Attributes:
        artifact: its name in Maven's repository, of the group org.apache.beam.
        pom: what packs the same program from Beam's libraries.
        packed: what that makes, below Maven's `target`.
        properties: of that pom, beside Beam's version.
        size_mb: of the libraries, for people.
    """

    artifact: str
    pom: Path
    packed: str
    size_mb: int
    properties: dict[str, str] = field(default_factory=dict)


FLINK_JOB_SERVER = JobServer(
    artifact=f"beam-runners-flink-{FLINK_MINOR}-job-server",
    pom=_POMS / "flink.xml",
    packed="flink-job-server-1.jar",
    size_mb=160,
    properties={"flink.minor": FLINK_MINOR},
)
SPARK_JOB_SERVER = JobServer(
    artifact="beam-runners-spark-3-job-server", pom=_POMS / "spark.xml", packed="spark-job-server-1.jar", size_mb=100
)


def job_server_jar(server: JobServer, *, downloads: Path) -> Path:
    """Return the jar of one of Beam's job servers; it is downloaded once.

    The official one of the installed Beam is taken where the Maven repository has it. Some mirrors hold Beam's libraries only:
    then the same program is packed from them, of the release that the pom names.

    Raises:
        ClusterError: Maven is not there, or neither of both can be had.
    """
    version = importlib.metadata.version("apache-beam")
    official = downloads / f"{server.artifact}-{version}" / f"{server.artifact}-{version}.jar"
    packed = downloads / f"{server.artifact}-{LIBRARY_VERSION}-packed" / f"{server.artifact}-{LIBRARY_VERSION}-packed.jar"
    for jar in (official, packed):
        if jar.exists():
            return jar
    mvn = find_program("mvn", remedy=_MVN_REMEDY)
    try:
        with made_whole(official.parent) as scratch:
            coordinates = f"org.apache.beam:{server.artifact}:{version}"
            run_program(
                [mvn, "-q", "-B", "dependency:copy", f"-Dartifact={coordinates}", f"-DoutputDirectory={scratch}"],
                doing=f"downloading {coordinates} from the Maven repository",
                remedy=_NETWORK_REMEDY,
                folder=scratch,
            )
        return official
    except ClusterError as not_there:
        properties = {"beam.version": LIBRARY_VERSION, **server.properties}
        try:
            with made_whole(packed.parent) as scratch:
                shutil.copy(server.pom, scratch / "pom.xml")
                run_program(
                    [mvn, "-q", "-B", "package", *(f"-D{name}={value}" for name, value in properties.items())],
                    doing=f"packing {server.artifact} from Beam's library {LIBRARY_VERSION} "
                    f"({server.size_mb} MB from the Maven repository)",
                    remedy=_NETWORK_REMEDY,
                    folder=scratch,
                )
                (scratch / "target" / server.packed).rename(scratch / packed.name)
                shutil.rmtree(scratch / "target")
        except ClusterError as error:
            raise ClusterError(f"{not_there}\nand {error}") from error
        return packed


def job_server(jar: Path, *, rest: str, address: str, scratch: Path, heap_bytes: int) -> Service:
    """Return the process of Flink's job server: `--job_endpoint` takes its address.

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
