import json
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from cluster import processes as module
from cluster.errors import ClusterError
from cluster.ports import answers, free_address, free_addresses
from cluster.processes import MARK, Processes, Service, only_one
from tests.cluster.support import server

SLEEP = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


@pytest.fixture
def cluster(tmp_path):
    found = Processes.create(tmp_path / "cluster")
    yield found
    found.stop_all()


def test_a_service_is_found_and_ended_by_another_command(cluster):
    address = free_address("127.0.0.1")
    cluster.start(server(address))
    cluster.wait_for_port("server")
    assert answers(address)
    other = Processes.find(cluster.folder)
    assert other.started == cluster.started
    assert other.id == cluster.id
    assert other.is_alive("server")
    (other.home("server") / "spilled").write_bytes(bytes(1000))
    assert other.stop_all() == 1
    assert not answers(address)
    # Logs tell afterwards what happened; scratch space goes.
    assert {path.name for path in cluster.folder.iterdir()} == {"logs"}
    assert not cluster.is_alive("server")
    assert Processes.find(cluster.folder) is None


def test_what_services_started_is_ended_too_and_nothing_else(cluster):
    bystander = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        cluster.start(server(free_address("127.0.0.1"), child=SLEEP))
        cluster.wait_for_port("server")
        members = cluster.members()
        assert len(members) == 2
        assert cluster.stop_all() == 2
        assert not any(member.is_running() for member in members)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_orphan_of_a_killed_service_is_ended(cluster):
    started = cluster.start(server(free_address("127.0.0.1"), child=SLEEP))
    cluster.wait_for_port("server")
    (orphan,) = psutil.Process(started.pid).children()
    killed = psutil.Process(started.pid)
    killed.kill()
    psutil.wait_procs([killed], timeout=30)
    cluster._reap()
    assert orphan.is_running()
    assert cluster.stop_all() == 1
    assert not orphan.is_running()


def test_who_does_not_hear_is_killed(cluster, monkeypatch):
    monkeypatch.setattr(module, "_TERM_SECONDS", 0.3)
    cluster.start(Service(name="deaf", command=(sys.executable, "-c", DEAF)))
    cluster.wait_for(["deaf"], ready=lambda: "deaf" in cluster.log("deaf").read_text(), what="silent", timeout_seconds=30)
    assert cluster.stop_all() == 1
    assert not cluster.is_alive("deaf")


def test_a_second_interrupt_does_not_break_off_the_taking_down(cluster, monkeypatch):
    monkeypatch.setattr(module, "_TERM_SECONDS", 1)
    cluster.start(Service(name="deaf", command=(sys.executable, "-c", DEAF)))
    cluster.wait_for(["deaf"], ready=lambda: "deaf" in cluster.log("deaf").read_text(), what="silent", timeout_seconds=30)
    interrupt = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    interrupt.start()
    assert cluster.stop_all() == 1
    interrupt.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_service_is_killed_with_its_children_and_started_again(cluster):
    services = {name: server(free_address("127.0.0.1"), name=name, child=SLEEP) for name in ("one", "other")}
    for name, service in services.items():
        cluster.start(service)
        cluster.wait_for_port(name)
    before = cluster.started["one"]
    cluster.stop("one", kill=True)
    assert not cluster.is_alive("one")
    assert cluster.is_alive("other")
    assert len(cluster.members()) == 2
    cluster.start(services["one"])
    cluster.wait_for_port("one")
    assert cluster.started["one"].pid != before.pid
    assert Processes.find(cluster.folder).started == cluster.started


def test_a_service_that_ends_shows_its_last_words(cluster):
    cluster.start(
        Service(name="weak", command=(sys.executable, "-c", "raise SystemExit('no room for me')"), address="127.0.0.1:1")
    )
    with pytest.raises(ClusterError, match=r"weak ended with status 1; .*weak\.log:\n  no room for me"):
        cluster.wait_for_port("weak")


def test_a_service_that_is_never_ready_shows_its_last_words(cluster):
    cluster.start(Service(name="slow", command=(sys.executable, "-c", f"print('still busy', flush=True); {SLEEP}")))
    cluster.wait_for(["slow"], ready=lambda: cluster.log("slow").read_text() != "", what="silent", timeout_seconds=30)
    with pytest.raises(ClusterError, match=r"(?s)not ready after 0 seconds.*still busy"):
        cluster.wait_for(["slow"], ready=lambda: False, what="not ready", timeout_seconds=0.1)


def test_a_program_that_is_not_there_says_so(cluster):
    with pytest.raises(ClusterError, match="ghost cannot be started: .*no-such-program"):
        cluster.start(Service(name="ghost", command=("no-such-program",)))


def test_a_second_cluster_in_a_folder_is_refused(cluster):
    with pytest.raises(ClusterError, match="holds a cluster already"):
        Processes.create(cluster.folder)


def test_a_process_that_took_over_an_id_is_not_taken_for_the_service(cluster):
    cluster.start(server(free_address("127.0.0.1")))
    path = cluster.folder / "state.json"
    state = json.loads(path.read_text())
    state["started"]["server"]["created"] -= 100
    path.write_text(json.dumps(state))
    assert not Processes.find(cluster.folder).is_alive("server")


def test_a_damaged_state_says_what_to_end(cluster):
    path = cluster.folder / "state.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ClusterError, match=f"is damaged .*{MARK}"):
        Processes.find(cluster.folder)
    path.write_text(whole)


def test_one_command_at_a_time(tmp_path):
    with only_one(tmp_path), pytest.raises(ClusterError, match="another cluster command"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_free_ports_are_different():
    assert len(set(free_addresses("127.0.0.1", count=50))) == 50


def test_addresses_that_cannot_be_used_are_named(cluster):
    address = free_address("127.0.0.1")
    cluster.start(server(address))
    cluster.wait_for_port("server")
    port = int(address.rpartition(":")[2])
    with pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{port} .*choose another port"):
        free_address("127.0.0.1", port=port)
    # Set aside for documentation: nobody has it.
    with pytest.raises(ClusterError, match=r"192\.0\.2\.1:0 .*loopback"):
        free_address("192.0.2.1")
