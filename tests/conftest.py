"""What holds for every test: no network, property tests without a clock, one S3 server on this machine."""

from __future__ import annotations

import functools
import os
import signal
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"

# A busy machine is slow, not wrong; in CI a failure must come again when the run is repeated.
_UNHURRIED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", **_UNHURRIED)
settings.register_profile("ci", derandomize=True, print_blob=True, **_UNHURRIED)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# A shell ignores interrupts for what it starts in the background, and a process started from here would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_bucket():
    """Name of a bucket on a local S3 server, which the environment then points to."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    import boto3
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("NO_PROXY", "127.0.0.1")
        environment.setenv("no_proxy", "127.0.0.1")
        environment.delenv("AWS_PROFILE", raising=False)
        s3fs.S3FileSystem.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket="pictures")
        yield "pictures"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def faulty_s3(s3_bucket, monkeypatch):
    """A proxy before the S3 server, to which the environment points; `decide` says what goes wrong."""
    import s3fs
    from botocore.retries.standard import ExponentialBackoff

    from storage import connections
    from storage.retries import Patience
    from tests.storage.faulty_s3 import FaultyS3

    # Shorter waits between tries, ours and those inside botocore; as many tries as ever.
    monkeypatch.setattr(connections, "Patience", functools.partial(Patience, first_wait_seconds=0.02, longest_wait_seconds=0.5))
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda backoff, context: 0.01)
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    proxy = FaultyS3(server=(server.hostname, server.port))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.stop()
