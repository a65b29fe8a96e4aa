"""Where engines and workers listen, and whether somebody answers there."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

CONNECT_SECONDS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the host means the machine that says it: from each machine another one."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address | None:
    """Return the address of `host:port`, also with a scheme before it and a path behind; None where there is no port."""
    try:
        found = urlsplit(text if "://" in text else f"//{text}")
        host, port = found.hostname, found.port
    except ValueError:
        return None
    return Address(host=host, port=port) if host and port else None


def why_silent(address: Address, *, seconds: float = CONNECT_SECONDS) -> str | None:
    """Return why nothing answers at an address; None where something does."""
    try:
        socket.create_connection((address.host, address.port), timeout=seconds).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def why_refused(address: Address, *, seconds: float = CONNECT_SECONDS) -> str | None:
    """Return why an address is known to be dead; None also where that cannot be told from here.

    A name that only a cluster's own network knows, or a network with no way into it, says nothing about what listens there.
    """
    try:
        socket.create_connection((address.host, address.port), timeout=seconds).close()
    except ConnectionRefusedError as error:
        return error.strerror or str(error)
    except OSError:
        return None
    return None
