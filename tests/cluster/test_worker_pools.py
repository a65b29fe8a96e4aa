import os
import socket
import sys
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from cluster.errors import ClusterError
from cluster.hosts import Host
from cluster.ports import free_address
from cluster.processes import Processes
from cluster.worker_pools import pool_port, worker_environment, worker_pool

HOSTS = ["127.0.0.2", "127.0.0.3"]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have one loopback address")


def test_a_port_is_free_on_every_host():
    port = pool_port(HOSTS)
    assert all(free_address(host, port=port) == f"{host}:{port}" for host in HOSTS)


def test_an_address_that_is_nobodys_is_named():
    with pytest.raises(ClusterError, match=r"192\.0\.2\.1"):
        pool_port(["127.0.0.2", "192.0.2.1"])


def test_workers_are_this_python(monkeypatch):
    assert worker_environment()["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)


def test_a_python_of_another_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3.11"))
    with pytest.raises(ClusterError, match="has no `python`"):
        worker_environment()


class WriteHost(beam.DoFn):
    """Writes which process of which host worked."""

    def __init__(self, folder):
        self._folder = folder

    def process(self, name):
        Path(self._folder, name).write_text(f"{os.environ['HOST']} {os.getpid()} {sys.executable}")


@pytest.mark.integration
def test_two_pools_share_a_port_and_each_starts_its_own_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("NO_PROXY", ",".join(["localhost", *HOSTS]))
    monkeypatch.setenv("no_proxy", ",".join(["localhost", *HOSTS]))
    port = pool_port(HOSTS)
    processes = Processes.create(tmp_path / "cluster")
    try:
        for number, host in enumerate(HOSTS, start=1):
            processes.start(worker_pool(Host(number=number, address=host), port=port, environment={"HOST": host}))
        for number in (1, 2):
            processes.wait_for_port(f"worker-pool-{number}")
        # Nobody else's address is taken.
        with socket.socket() as bystander:
            bystander.bind(("127.0.0.1", port))
        out = tmp_path / "out"
        out.mkdir()
        config = f"--environment_config={HOSTS[1]}:{port}"
        words = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=EXTERNAL", config]
        with beam.Pipeline(options=PipelineOptions(words)) as pipeline:
            _ = pipeline | beam.Create(["a", "b"]) | beam.ParDo(WriteHost(str(out)))
        written = {file.name: file.read_text().split() for file in out.iterdir()}
        assert set(written) == {"a", "b"}
        hosts, pids, pythons = zip(*written.values(), strict=True)
        assert set(hosts) == {HOSTS[1]}
        assert os.getpid() not in {int(pid) for pid in pids}
        assert {os.path.realpath(python) for python in pythons} == {os.path.realpath(sys.executable)}
        assert processes.stop_all() >= 2
    finally:
        processes.stop_all()
