"""Ports of this machine: which answer, and which are free."""

from __future__ import annotations

import contextlib
import socket

from cluster.errors import ClusterError


def answers(address: str) -> bool:
    """Return whether something accepts connections on "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def free_addresses(host: str, *, count: int) -> list[str]:
    """Return "host:port" with different ports that are free.

    Raises:
        ClusterError: the address is not this machine's.
    """
    with contextlib.ExitStack() as held:
        return [_listen(host, port=0, held=held) for _ in range(count)]


def free_address(host: str, *, port: int = 0) -> str:
    """Return "host:port" with that port, or with one that is free.

    Raises:
        ClusterError: the port is taken, or the address is not this machine's.
    """
    with contextlib.ExitStack() as held:
        return _listen(host, port=port, held=held)


def _listen(host: str, *, port: int, held: contextlib.ExitStack) -> str:
    server = held.enter_context(socket.socket())
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((host, port))
    except OSError as error:
        remedy = "choose another port" if port else "give the loopback device this address (macOS: ifconfig lo0 alias ...)"
        raise ClusterError(f"nothing can listen on {host}:{port} ({error.strerror}); {remedy}") from error
    return f"{host}:{server.getsockname()[1]}"
