import os
import shutil
import subprocess
import sys

import pytest

from cluster import hosts as module
from cluster.assembly import without_proxies
from cluster.errors import ClusterError
from cluster.hosts import check_own_networks, hosts_on_loopback, hosts_with_own_networks
from cluster.processes import Processes, Service


def can_make_networks():
    """Whether this is root with the right to make networks, which a container's root may lack."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "decant-probe"], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", "decant-probe"], check=True)
    return made


def test_on_loopback_each_host_has_an_address_of_its_own():
    hosts = hosts_on_loopback(3)
    assert hosts.center == "127.0.0.1"
    assert [host.address for host in hosts.workers] == ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    assert without_proxies(hosts)["NO_PROXY"] == "localhost,127.0.0.1,worker-pool,127.0.0.2,127.0.0.3,127.0.0.4"


def test_networks_are_refused_to_others_than_root(monkeypatch, tmp_path):
    (tmp_path / "ip").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module.os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="only be made by root; leave out --own-networks"):
        check_own_networks()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ClusterError, match="ip is not on the PATH; install iproute2"):
        check_own_networks()


@pytest.mark.skipif(not can_make_networks(), reason="needs root with the right to make networks")
def test_hosts_apart_share_neither_loopback_nor_folder_and_leave_nothing(tmp_path):
    processes = Processes.create(tmp_path / "cluster")
    try:
        hosts = hosts_with_own_networks(processes, num_hosts=2)
        assert len({host.address for host in hosts.workers}) == 2
        (processes.folder / "mine").write_text("of the submitter")
        for host in hosts.workers:
            (host.disk / "weights").write_text(str(host.number))
            script = (
                f"ls {processes.folder}; cat {processes.folder}/weights; echo; "
                f"{sys.executable} -m http.server --bind 127.0.0.1 8000 >/dev/null 2>&1 & "
                f"{sys.executable} -m http.server --bind {host.address} 8000 >/dev/null 2>&1 & echo begun; wait"
            )
            enter = host.enter_without_shared_disk(processes.folder)
            name = f"host-{host.number}"
            processes.start(Service(name=name, command=(*enter, "sh", "-c", script), address=f"{host.address}:8000"))
        for host in hosts.workers:
            processes.wait_for_port(f"host-{host.number}")
            said = processes.log(f"host-{host.number}").read_text().split()
            assert said == ["weights", str(host.number), "begun"]
        assert processes.stop_all() >= 4
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        assert processes.id[:8] not in listed
        assert subprocess.run(["ip", "link", "show", f"dc{processes.id[:8]}"], capture_output=True, check=False).returncode
    finally:
        processes.stop_all()
