"""Places that several tests of runs share."""

from __future__ import annotations

import uuid

import pytest


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def any_url(request, tmp_path):
    match request.param:
        case "local":
            return str(tmp_path / "cache")
        case "memory":
            return f"memory://{uuid.uuid4().hex}"
        case _:
            return f"s3://{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}"
