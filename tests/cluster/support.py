"""Small services for tests of process keeping, and packages that pip finds without a network."""

import io
import sys
import tarfile

from cluster.processes import Service

SERVER = """
import socket, subprocess, sys
if sys.argv[3:]:
    subprocess.Popen([sys.executable, "-c", sys.argv[3]])
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("serving", flush=True)
while True:
    server.accept()[0].close()
"""


def server(address, *, name="server", child=""):
    """A process that answers on an address; `child` is code that another process of its own runs."""
    host, _, port = address.rpartition(":")
    command = (sys.executable, "-c", SERVER, host, port, *([child] if child else []))
    return Service(name=name, command=command, address=address)


def package(folder, *, name, version, files):
    """Write a source distribution with such files, as those that carry jars are."""
    setup = f"from setuptools import setup\nsetup(name='{name}', version='{version}')\n"
    texts = {"setup.py": setup, "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    with tarfile.open(folder / f"{name}-{version}.tar.gz", "w:gz") as archive:
        for path, text in {**texts, **dict.fromkeys(files, "jar")}.items():
            info = tarfile.TarInfo(f"{name}-{version}/{path}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))


def pip_index(tmp_path, monkeypatch):
    """Return the folder that pip looks at instead of the network; a fixture where a test module says so."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder
