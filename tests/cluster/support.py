"""Small services for tests of process keeping."""

import sys

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
