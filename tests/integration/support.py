"""What the tests of whole commands share."""

from __future__ import annotations


def refuse(ended, *, status, saying):
    """A clear error: one status, no label set, a message that names what is wrong."""
    assert ended.status == status, ended
    for words in saying:
        assert words in ended.err
    assert ended.err.startswith("decant: ")
