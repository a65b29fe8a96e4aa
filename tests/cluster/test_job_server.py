import importlib.metadata
import xml.etree.ElementTree as ET

import pytest

from cluster.errors import ClusterError
from cluster.flink import FLINK_MINOR
from cluster.job_server import FLINK_JOB_SERVER, LIBRARY_VERSION, SPARK_JOB_SERVER, job_server, job_server_jar

BEAM = importlib.metadata.version("apache-beam")

# Does what Maven does with a repository that holds the job server, the libraries only, or nothing.
MVN = """#!/bin/sh
echo "$@" >> "$MVN_LOG"
case "$*" in
  *dependency:copy*)
    [ "$REPOSITORY" = whole ] || { echo 'Could not find artifact'; exit 1; }
    for word in "$@"; do case $word in -DoutputDirectory=*) artifact="$*"; artifact="${artifact#*org.apache.beam:}"
      echo official > "${word#*=}/${artifact%%:*}-BEAM.jar";; esac; done;;
  *package*)
    [ "$REPOSITORY" = libraries ] || { echo 'Could not resolve dependencies'; exit 1; }
    mkdir target && echo packed > "target/$(sed -n 's:.*<artifactId>\\(.*-job-server\\)</artifactId>:\\1:p' pom.xml)-1.jar";;
esac
"""


@pytest.fixture
def mvn(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "mvn"
    program.parent.mkdir()
    program.write_text(MVN.replace("BEAM", BEAM))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("MVN_LOG", str(tmp_path / "mvn.log"))
    return lambda repository: monkeypatch.setenv("REPOSITORY", repository)


@pytest.fixture(params=[FLINK_JOB_SERVER, SPARK_JOB_SERVER], ids=["flink", "spark"])
def server(request):
    return request.param


def test_the_official_jar_is_taken_where_there_is_one(tmp_path, mvn, server):
    mvn("whole")
    jar = job_server_jar(server, downloads=tmp_path / "downloads")
    assert jar.read_text() == "official\n"
    assert BEAM in jar.name
    mvn("nothing")
    assert job_server_jar(server, downloads=tmp_path / "downloads") == jar


def test_it_is_packed_from_the_library_otherwise(tmp_path, mvn, server):
    mvn("libraries")
    jar = job_server_jar(server, downloads=tmp_path / "downloads")
    assert jar.read_text() == "packed\n"
    assert LIBRARY_VERSION in jar.name
    assert f"-Dbeam.version={LIBRARY_VERSION}" in (tmp_path / "mvn.log").read_text()
    mvn("nothing")
    assert job_server_jar(server, downloads=tmp_path / "downloads") == jar


def test_where_neither_can_be_had_both_reasons_are_given_and_nothing_is_left(tmp_path, mvn, server):
    mvn("nothing")
    with pytest.raises(ClusterError, match=r"(?s)Could not find artifact.*--job-server-jar.*Could not resolve dependencies"):
        job_server_jar(server, downloads=tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_without_maven_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="mvn is not on the PATH; install Maven .*--job-server-jar"):
        job_server_jar(FLINK_JOB_SERVER, downloads=tmp_path)


@pytest.mark.parametrize(
    ("described", "driver"),
    [(FLINK_JOB_SERVER, "flink.FlinkJobServerDriver"), (SPARK_JOB_SERVER, "spark.SparkJobServerDriver")],
    ids=["flink", "spark"],
)
def test_the_pom_packs_what_is_downloaded(described, driver):
    pom = ET.parse(described.pom)
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    assert pom.findtext("m:properties/m:beam.version", namespaces=space) == LIBRARY_VERSION
    library = pom.findtext("m:dependencies/m:dependency/m:artifactId", namespaces=space)
    assert f"{library}-job-server" == described.artifact.replace(FLINK_MINOR, "${flink.minor}")
    assert pom.findtext(".//m:mainClass", namespaces=space) == f"org.apache.beam.runners.{driver}"


def test_a_job_server_listens_on_its_address_and_knows_the_job_manager(tmp_path, monkeypatch):
    (tmp_path / "java").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    service = job_server(
        tmp_path / "a.jar", rest="127.0.0.1:8081", address="127.0.0.1:8099", scratch=tmp_path, heap_bytes=256 * 2**20
    )
    words = list(service.command)
    assert "-Xmx256m" in words
    assert words[words.index("--flink-master") + 1] == "127.0.0.1:8081"
    assert (words[words.index("--job-host") + 1], words[words.index("--job-port") + 1]) == ("127.0.0.1", "8099")
