import itertools
from pathlib import Path

import pytest
import yaml

from cluster import flink
from cluster.errors import ClusterError
from cluster.flink import FLINK_VERSION, FlinkAddresses, FlinkMemory
from cluster.hosts import Host
from tests.cluster.support import package, pip_index

ADDRESSES = FlinkAddresses(rest="127.0.0.1:8081", rpc="127.0.0.1:6123", blob="127.0.0.1:6124")


@pytest.fixture
def java(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return str(program)


def test_the_configuration_keeps_every_port_on_this_machine(tmp_path):
    config = tmp_path / "flink"
    flink.write_config(config, scratch=tmp_path / "scratch", addresses=ADDRESSES, num_hosts=2, num_slots=3)
    options = yaml.safe_load((config / "config.yaml").read_text())
    bound = {name: value for name, value in options.items() if name.endswith(("address", "bind-host"))}
    assert set(bound.values()) == {"127.0.0.1"}
    assert set(bound) >= {"jobmanager.bind-host", "jobmanager.rpc.address", "rest.bind-address"}
    assert options["rest.port"] == 8081
    assert options["io.tmp.dirs"] == options["web.upload.dir"] == str(tmp_path / "scratch")
    assert options["parallelism.default"] == 6
    assert options["taskmanager.numberOfTaskSlots"] == 3
    assert (config / "log4j.properties").exists()


def test_a_task_manager_is_told_all_its_memory_and_its_own_worker_pool(tmp_path, java):
    config = tmp_path / "flink"
    flink.write_config(config, scratch=tmp_path / "scratch", addresses=ADDRESSES, num_hosts=2, num_slots=1)
    memory = FlinkMemory()
    host = Host(number=2, address="127.0.0.3")
    service = flink.task_manager(tmp_path, config=config, host=host, pool_name="worker-pool", memory=memory)
    command = list(service.command)
    assert command[0] == java
    options = dict(word.split("=", 1) for before, word in itertools.pairwise(command) if before == "-D")
    assert options["taskmanager.bind-host"] == options["taskmanager.host"] == "127.0.0.3"
    sizes = {name.removeprefix("taskmanager.memory."): value for name, value in options.items() if "memory" in name}
    assert set(sizes) >= {"task.heap.size", "managed.size", "network.max", "jvm-overhead.max", "jvm-metaspace.size"}
    assert all(value.endswith("b") and int(value[:-1]) > 0 for value in sizes.values())
    (hosts,) = (word.split("=", 1)[1] for word in command if word.startswith("-Djdk.net.hosts.file="))
    lines = dict(reversed(line.split()) for line in Path(hosts).read_text().splitlines())
    assert lines["worker-pool"] == "127.0.0.3"
    assert lines["localhost"] == "127.0.0.1"


def test_without_java_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="java is not on the PATH; install a JDK or JRE 17"):
        flink.job_manager(tmp_path, config=tmp_path, addresses=ADDRESSES, memory=FlinkMemory())


index = pytest.fixture(pip_index)


def flink_package(folder, *, jars):
    files = [*(f"deps/lib/{jar}" for jar in jars), "deps/opt/other.jar"]
    package(folder, name="apache-flink-libraries", version=FLINK_VERSION, files=files)


def test_the_distribution_is_taken_out_of_its_package_once(tmp_path, index):
    jars = {f"flink-dist-{FLINK_VERSION}.jar", "log4j-core-2.jar"}
    flink_package(index, jars=jars)
    lib = flink.distribution(tmp_path / "downloads")
    assert {path.name for path in lib.iterdir()} == jars
    (index / f"apache-flink-libraries-{FLINK_VERSION}.tar.gz").unlink()
    assert flink.distribution(tmp_path / "downloads") == lib


def test_another_packing_is_refused_and_leaves_nothing(tmp_path, index):
    flink_package(index, jars=["other.jar"])
    with pytest.raises(ClusterError, match="holds no flink-dist"):
        flink.distribution(tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.usefixtures("index")
def test_without_a_network_the_message_says_so_and_nothing_is_left(tmp_path):
    with pytest.raises(
        ClusterError, match=r"(?s)downloading apache-flink-libraries.*check the network.*No matching distribution"
    ):
        flink.distribution(tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_nobody_answers_for_a_job_manager_that_is_not_there():
    assert flink.ask("127.0.0.1:1", "overview") is None
    assert flink.num_free_slots("127.0.0.1:1") == 0
