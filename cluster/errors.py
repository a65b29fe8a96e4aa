"""What goes wrong with a cluster that is played."""

from __future__ import annotations

from storage.errors import DecantError


class ClusterError(DecantError):
    """The cluster cannot be brought up, or has lost a process."""
