"""The digest of a unit's content: what was indexed, and what a labelling worker proves it has labelled."""

from __future__ import annotations

import hashlib
import struct

from storage.sources.base import Sample

_LABEL = struct.Struct("<q")


class UnitDigest:
    """A sha256 that grows with each sample of a unit, in order.

    For each sample it takes in: the key as UTF-8, a zero byte, the label as little-endian int64, and the 32 bytes of the sha256
    of the stored bytes (of no bytes where they could not be read). So it does not depend on the container, on paths or
    on file times.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._num_samples = 0

    @property
    def num_samples(self) -> int:
        """Samples added so far."""
        return self._num_samples

    def add(self, sample: Sample) -> None:
        """Take in the next sample.

        Raises:
            ValueError: samples came out of order or one was left out.
        """
        if sample.position != self._num_samples:
            raise ValueError(f"sample {sample.key!r} has position {sample.position}, but {self._num_samples} is next")
        self._num_samples += 1
        self._sha256.update(sample.key.encode() + b"\0" + _LABEL.pack(sample.label))
        self._sha256.update(hashlib.sha256(sample.data if sample.data is not None else b"").digest())

    def hexdigest(self) -> str:
        """Return the digest of what was added so far, 64 hex digits."""
        return self._sha256.hexdigest()
