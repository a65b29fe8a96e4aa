"""What the tests of engines share."""

from __future__ import annotations

import logging
import socket

import pytest

from tests.pipelines.engine.flink_rest import flink_rest


@pytest.fixture(autouse=True)
def _quiet_beam():
    """Beam logs every failure of a worker with its traceback."""
    logger = logging.getLogger("apache_beam")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@pytest.fixture
def listening():
    """The endpoint of something that answers, if only by taking connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def rest():
    """A Flink 1.20 with 3 of 4 slots free, as its REST shows it."""
    with flink_rest() as server:
        yield server
