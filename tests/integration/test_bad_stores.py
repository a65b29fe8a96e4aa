"""Caches that cannot be written or reached, and packages that are not there: said, and nothing half done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from tests.integration.support import refuse
from tests.pipelines.support import (
    ROOT,
    folder_source,
    run_decant,
    write_folder,
)


@pytest.fixture
def made(made_by_colour):
    return made_by_colour


def test_a_cache_below_a_file_is_refused(command, made, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for cache in (tmp_path / "file", tmp_path / "file" / "cache"):
        refuse(command("label", made(cache=cache)), status=1, saying=[f"cannot write {cache}/", "check that the store"])


@contextmanager
def mounted(folder, *options):
    """A small file system of its own, where this process may mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_read_only_cache_is_refused(command, made, tmp_path):
    with mounted(tmp_path / "readonly", "-o", "ro") as folder:
        ended = command("label", made(cache=folder / "cache"))
    refuse(ended, status=1, saying=["cannot write", "Read-only file system", "is writable"])


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.integration)])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_space(command, made, tmp_path, workers):
    with mounted(tmp_path / "small", "-o", "size=128k") as folder:
        config = made(cache=folder / "cache", source=folder_source(write_folder(tmp_path / "pictures"), unit_size=2))
        ended = command("label", config, "--workers", workers)
        # Which file meets the end first depends on the workers: a part or its record, which is created, not written over.
        assert re.match(r"decant: cannot (write|create) ", ended.err), ended.err
        refuse(ended, status=1, saying=["No space left on device", "run the same command again to go on"])
        assert ended.err.count("\n") == 1
        subprocess.run(["mount", "-o", "remount,size=8m", folder], check=True)
        report = command("label", config, "--workers", workers, "--json").json
        assert 0 < report["num_computed_rows"] < report["num_rows"] == 48
        assert command("cache", "verify", folder / "cache").status == 0


@pytest.mark.integration
def test_a_quota_on_files_is_said(made):
    """Where nothing can be mounted: a limit on the size of any file this process writes."""

    before = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
"""
    status, _, errors = run_decant("label", made(), before=before)
    assert status == 1
    assert errors.startswith("decant: cannot write")
    assert "File too large" in errors
    assert "Traceback" not in errors


def test_a_store_that_does_not_answer_is_said_within_seconds(made, monkeypatch, command):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    started = time.monotonic()
    for change in ({"cache": "s3://bucket/cache"}, {"source": {"kind": "webdataset", "path": "s3://bucket/{0..1}.tar"}}):
        ended = command("label", made(**change))
        refuse(ended, status=1, saying=["s3://bucket/", "127.0.0.1:9", "check"])
    s3fs.S3FileSystem.clear_instance_cache()
    assert time.monotonic() - started < 45


@pytest.mark.s3
def test_a_bucket_that_does_not_exist_is_said(command, made, s3_bucket):
    refuse(command("label", made(cache="s3://no-such-bucket/cache")), status=1, saying=["cannot write s3://no-such-bucket/cache"])
    source = {"kind": "webdataset", "path": "s3://no-such-bucket/*.tar"}
    refuse(command("label", made(source=source)), status=1, saying=["s3://no-such-bucket"])


# Installations


@pytest.mark.integration
@pytest.mark.parametrize(
    ("missing", "words", "saying"),
    [
        ("apache_beam", ["label"], "pip install 'decant[label]'"),
        ("apache_beam", ["plan"], "pip install 'decant[label]'"),
        ("s3fs", ["label", "--set", "cache=s3://bucket/cache"], "pip install 'decant[s3]'"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(made, missing, words, saying):
    code = f"import sys; sys.modules[{missing!r}] = None; import decant; sys.exit(decant.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, words[0], made(), *words[1:]],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert saying in done.stderr
    assert missing in done.stderr
    assert "Traceback" not in done.stderr
