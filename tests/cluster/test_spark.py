import dataclasses
import functools
import http.server
import itertools
import socket
import threading
from pathlib import Path

import pytest

from cluster import spark
from cluster.hosts import Host
from cluster.spark import SparkAddresses
from tests.cluster.support import package, pip_index

ADDRESSES = SparkAddresses(master="127.0.0.1:7077", rest="127.0.0.1:6066", page="127.0.0.1:8080")
CORE = f"spark-core_2.12-{spark.SPARK_VERSION}.jar"

index = pytest.fixture(pip_index)


@pytest.fixture(autouse=True)
def java(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return str(program)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and writes no log."""

    def log_message(self, *_):
        """Say nothing."""


def given(service):
    return {before: word for before, word in itertools.pairwise(service.command) if before.startswith("--")}


def test_the_master_takes_jobs_over_rest_on_its_own_address(tmp_path, java):
    service = spark.master(tmp_path / "jars", addresses=ADDRESSES, scratch=tmp_path / "scratch", pool_name="pool")
    assert service.command[0] == java
    assert {"-Dspark.master.rest.enabled=true", "-Dspark.master.rest.port=6066"} <= set(service.command)
    assert given(service) == {"--host": "127.0.0.1", "--port": "7077", "--webui-port": "8080"}
    assert service.address == ADDRESSES.rest


def test_what_a_worker_starts_finds_the_pool_of_its_own_host(tmp_path):
    host = Host(number=2, address="127.0.0.3")
    service = spark.worker(tmp_path / "jars", host=host, addresses=ADDRESSES, scratch=tmp_path / "scratch", pool_name="pool")
    assert "spark://127.0.0.1:7077" in service.command
    assert given(service)["--host"] == "127.0.0.3"
    options = service.environment["JDK_JAVA_OPTIONS"].split()
    (hosts,) = (word.partition("=")[2] for word in options if word.startswith("-Djdk.net.hosts.file="))
    names = dict(reversed(line.split()) for line in Path(hosts).read_text().splitlines())
    assert names == {"pool": "127.0.0.3", "localhost": "127.0.0.1", socket.gethostname(): "127.0.0.3"}
    assert service.environment["SPARK_HOME"] == str(tmp_path)
    assert service.environment["SPARK_LOCAL_IP"] == "127.0.0.3"


def test_the_distribution_is_taken_out_of_its_package(tmp_path, index):
    package(index, name="pyspark", version=spark.SPARK_VERSION, files=[f"deps/jars/{CORE}", "deps/examples/other.jar"])
    lib = spark.distribution(tmp_path / "downloads")
    assert [path.name for path in lib.iterdir()] == [CORE]
    assert lib.name == "jars"


def test_workers_are_counted_by_what_the_master_says(tmp_path):
    page = tmp_path / "page" / "json" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text('{"url": "spark://127.0.0.1:7077", "workers": [{}, {}, {}], "aliveworkers": 2, "status": "ALIVE"}')
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "page"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        addresses = dataclasses.replace(ADDRESSES, page=f"127.0.0.1:{server.server_port}")
        found = spark.num_workers(addresses)
        server.shutdown()
    assert found == 2
    assert spark.num_workers(addresses) == 0


def test_a_run_is_submitted_over_rest_as_one_jar(tmp_path):
    words = spark.submission_arguments(addresses=ADDRESSES, jar=tmp_path / "a.jar", pool="pool:50000")
    assert "--spark_submit_uber_jar" in words
    assert "--spark_rest_url=http://127.0.0.1:6066" in words
    assert "--environment_config=pool:50000" in words
