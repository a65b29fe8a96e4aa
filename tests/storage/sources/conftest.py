"""An empty folder in every store that sources are tested with."""

from __future__ import annotations

import uuid

import fsspec
import pytest


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def root(request, tmp_path):
    """URL of a folder of its own in each store."""
    if request.param == "local":
        yield str(tmp_path / "source")
    elif request.param == "memory":
        yield "memory://source"
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs[:] = [""]
    else:
        yield f"s3://{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}"
