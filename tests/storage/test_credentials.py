"""S3 without credentials is refused in seconds, with the ways to give some; roles of machines are found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from storage.config import ExperimentConfig
from storage.connections import connect
from storage.credentials import check_credentials, stores_of
from storage.errors import CacheError, ConfigError, SourceError
from storage.filesystem import Store
from storage.retries import is_unreached
from storage.sources.files import expand_files

ROOT = Path(__file__).parents[2]
WAYS = "no credentials for S3 were found: .*AWS_ACCESS_KEY_ID.*AWS_PROFILE.*fsspec.*anon.*a role"


@pytest.fixture
def stranger(monkeypatch, tmp_path):
    """A machine that nobody gave credentials; returned is a function that says where its metadata service is."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    for name in [name for name in os.environ if name.startswith("AWS_") and not name.endswith("CA_BUNDLE")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    s3fs.S3FileSystem.clear_instance_cache()

    def with_metadata_at(port):
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{port}/")

    yield with_metadata_at
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def silence():
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class _Role(BaseHTTPRequestHandler):
    def _say(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self):
        self._say("token")

    def do_GET(self):
        if not self.path.rstrip("/").endswith("labels"):
            self._say("labels")
            return
        ends = (datetime.now(UTC) + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
        keys = {"AccessKeyId": "role", "SecretAccessKey": "secret", "Token": "token"}
        self._say(json.dumps({"Code": "Success", **keys, "Expiration": ends}))

    def log_message(self, *arguments):
        pass


@pytest.mark.s3
def test_stores_without_credentials_are_refused_in_seconds_and_asked_for_once(stranger, silence):
    stranger(silence)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"^cache: s3://bucket/cache: {WAYS}"):
        check_credentials({"source.path": "/somewhere", "cache": "s3://bucket/cache"})
    asked = time.monotonic()
    assert asked - began < 10
    with pytest.raises(ConfigError, match=f"^source.path: s3://bucket: {WAYS}"):
        check_credentials({"source.path": "s3://bucket"})
    with pytest.raises(CacheError, match=f"cannot write .*: {WAYS}"):
        Store("s3://bucket/cache").write("x", b"1")
    with pytest.raises(SourceError, match=f"cannot list .*: {WAYS}"):
        expand_files("s3://bucket/shards/*.tar", suffixes=[".tar"])
    assert time.monotonic() - asked < 2


@pytest.mark.s3
def test_a_role_of_the_machine_is_found(stranger):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Role)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        stranger(server.server_port)
        check_credentials({"cache": "s3://bucket/cache"})
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.s3
def test_keys_of_fsspecs_configuration_and_buckets_open_to_everybody_are_not_refused(stranger, silence, monkeypatch):
    stranger(silence)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})
    check_credentials({"cache": "s3://bucket/cache"})
    monkeypatch.setitem(fsspec.config.conf, "s3", {"key": "a", "secret": "b"})
    check_credentials({"cache": "s3://bucket/cache"})


@pytest.mark.s3
def test_a_proxy_that_refuses_is_taken_for_a_wrong_address(stranger, monkeypatch):
    stranger(80)
    with socket.create_server(("127.0.0.1", 0)) as server:
        refusing = f"http://127.0.0.1:{server.getsockname()[1]}"
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, refusing)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "elsewhere")
    fs, _ = connect("s3://bucket/x")
    began = time.monotonic()
    with pytest.raises(OSError, match="proxy") as error:
        fs.exists("bucket/x")
    assert is_unreached(error.value)
    assert time.monotonic() - began < 10


def test_every_store_of_a_config_is_looked_at():
    data = {
        "name": "x",
        "cache": "s3://a/cache",
        "source": {"kind": "webdataset", "path": ["s3://b/0.tar", "s3://c/1.tar"]},
        "views": {"kind": "evaluation"},
    }
    config = ExperimentConfig.model_validate_json(json.dumps(data))
    assert stores_of(config) == {"cache": "s3://a/cache", "source.path.0": "s3://b/0.tar", "source.path.1": "s3://c/1.tar"}


@pytest.mark.s3
@pytest.mark.parametrize("action", ["plan", "label"])
def test_commands_refuse_before_they_import_a_framework(stranger, silence, tmp_path, action):
    stranger(silence)
    config = {
        "name": "x",
        "cache": "s3://bucket/cache",
        "source": {"kind": "image_folder", "path": str(tmp_path)},
        "teacher": {"kind": "timm", "name": "test_vit"},
        "views": {"kind": "evaluation"},
    }
    (tmp_path / "x.json").write_text(json.dumps(config))
    code = (
        f"import sys, decant; status = decant.main([{action!r}, {str(tmp_path / 'x.json')!r}]); "
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env={**os.environ}
    )
    assert ended.returncode == 2, ended.stderr
    assert "cache: s3://bucket/cache: no credentials for S3 were found" in ended.stderr
