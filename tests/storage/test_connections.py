"""How stores are opened: what a person configured stays, copies work, files of remote stores are only read."""

from __future__ import annotations

import pickle
import uuid

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from storage.connections import PatientFileSystem, connect


@pytest.mark.parametrize(("url", "kind"), [("/somewhere", LocalFileSystem), ("memory://x", MemoryFileSystem)])
def test_stores_without_a_network_are_fsspecs_own(url, kind):
    assert type(connect(url)[0]) is kind


@pytest.mark.s3
def test_what_a_person_configured_for_s3_stays(s3_bucket, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"user_agent_extra": "mine"}, "requester_pays": True})
    fs, _ = connect(f"s3://{s3_bucket}/x")
    assert fs.config_kwargs["user_agent_extra"] == "mine"
    assert fs.config_kwargs["retries"]["total_max_attempts"] > 1
    assert fs.req_kw == {"RequestPayer": "requester"}
    fs.pipe_file(f"{s3_bucket}/{uuid.uuid4().hex}", b"1")


@pytest.mark.s3
def test_a_copy_in_another_process_reads_the_same(s3_bucket):
    path = f"{s3_bucket}/{uuid.uuid4().hex}"
    fs, _ = connect(f"s3://{path}")
    fs.pipe_file(path, b"0123456789")
    copy = pickle.loads(pickle.dumps(fs))
    assert isinstance(copy, PatientFileSystem)
    assert copy.cat_file(path) == b"0123456789"
    assert copy.cat_file(path, start=2, end=5) == b"234"


@pytest.mark.s3
def test_a_file_of_a_remote_store_is_not_opened_to_be_written(s3_bucket):
    """An exception inside would commit what was written until then."""
    fs, _ = connect(f"s3://{s3_bucket}/x")
    with pytest.raises(ValueError, match="write them whole"):
        fs.open(f"{s3_bucket}/x", "wb")
