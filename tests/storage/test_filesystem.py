"""Stores on disk, in memory and on S3: the contract, and what happens when they fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid

import fsspec
import pytest

from storage.errors import CacheError
from storage.filesystem import Store, filesystem_of
from tests.contracts.store_contract import StoreContract, everything


class TestLocal(StoreContract):
    @pytest.fixture
    def url(self, tmp_path):
        return str(tmp_path / "store")


class TestMemory(StoreContract):
    @pytest.fixture
    def url(self):
        return f"memory://{uuid.uuid4().hex}"


@pytest.mark.s3
class TestS3(StoreContract):
    @pytest.fixture
    def url(self, s3_bucket):
        return f"s3://{s3_bucket}/{uuid.uuid4().hex}"


def test_empty_folders_are_removed_and_others_stay(tmp_path):
    store = Store(str(tmp_path))
    for name in ("a/b/c/file", "a/d/file", "e/f/file"):
        store.write(name, b"1")
    for name in ("a/b/c/file", "e/f/file"):
        store.remove(name)
    store.remove_empty_folders("a")
    store.remove_empty_folders("nowhere")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a", "a/d", "a/d/file", "e", "e/f"]
    store.remove_empty_folders("e")
    assert not (tmp_path / "e").exists()


def test_a_local_store_has_several_names(tmp_path, monkeypatch):
    Store(str(tmp_path / "store")).write("file", b"1")
    monkeypatch.chdir(tmp_path)
    for url in (f"file://{tmp_path}/store", "store", "./store"):
        assert Store(url).read("file") == b"1"


def run_python(code, *arguments, **options):
    """Run code in a fresh interpreter; its last line says what it saw."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


WRITE_TOO_MUCH = """
import resource, signal, sys
from storage.errors import CacheError
from storage.filesystem import Store
store = Store(sys.argv[1])
store.write("small", b"1" * 1000)
store.write("kept", b"old")
if sys.argv[2] == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for write in (store.write, store.create):
    for name in ("large", "kept") if write == store.write else ("large",):
        try:
            write(name, b"2" * 200_000)
        except CacheError as error:
            print(error)
        else:
            sys.exit("nothing failed")
store.write("after", b"3")
print(store.names(""), store.read("kept"))
"""


@pytest.mark.parametrize(("how", "reason"), [("limit", "File too large"), ("disk", "No space left on device")])
def test_a_file_that_does_not_fit_leaves_nothing(tmp_path, how, reason):
    folder = tmp_path / "store"
    folder.mkdir()
    command = [sys.executable, "-c", WRITE_TOO_MUCH, folder, how]
    if how == "disk":
        # A file system of 64 KiB that nobody else sees and that goes with its process.
        mount = f'mount -t tmpfs -o size=64k none "{folder}" && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
        may_mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{folder}"']
        if shutil.which("unshare") is None or subprocess.run(may_mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    *errors, last = result.stdout.splitlines()
    assert len(errors) == 3
    for error, (doing, name) in zip(errors, [("write", "large"), ("write", "kept"), ("create", "large")], strict=True):
        assert error.startswith(
            f"cannot {doing} {folder}/{name}: {reason}; check that the store can be reached, is writable and has space"
        )
        assert "run the same command again" in error
    assert last == "['after', 'kept', 'small'] b'old'"


WRITE_FOR_EVER = """
import sys
from storage.filesystem import Store
store = Store(sys.argv[1])
print("started", flush=True)
while True:
    for letter in (b"a", b"b"):
        store.write("names/file", letter * 3_000_000)
"""


def test_a_killed_writer_leaves_a_whole_file_and_nothing_that_is_listed(tmp_path):
    store = Store(str(tmp_path / "store"))
    partials = attempt = 0
    # Until a kill has come while something was half written.
    while not partials or attempt < 8:
        attempt += 1
        process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, store.url], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.02 + 0.007 * (attempt % 16))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        partials += len(everything(store.url)) - len(store.names(""))
        if store.exists("names/file"):
            assert store.read("names/file") in (b"a" * 3_000_000, b"b" * 3_000_000)
            assert store.names("") == store.names("names") == ["names/file"]
    assert store.names("") == ["names/file"]


@pytest.mark.parametrize("place", ["/proc/decant", "/sys/decant", "/dev/null/decant"])
def test_a_place_that_cannot_be_written_is_an_error_with_a_remedy(place):
    store = Store(place)
    for write in (store.check_writable, lambda: store.write("a/b", b"1"), lambda: store.create("a/b", b"1")):
        with pytest.raises(CacheError, match=f"cannot (write|create) {place}/.*is writable and has space"):
            write()


def test_a_file_where_the_store_should_be_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    store = Store(str(tmp_path / "file"))
    for name in ("a", "a/b"):
        with pytest.raises(CacheError, match=f"cannot write {tmp_path}/file/{name}: .*check that the store"):
            store.write(name, b"1")
        with pytest.raises(CacheError, match=f"cannot create {tmp_path}/file/{name}: .*check that the store"):
            store.create(name, b"1")
    with pytest.raises(CacheError, match="cannot write"):
        store.check_writable()
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_folder_where_a_file_should_be_is_an_error(tmp_path):
    store = Store(str(tmp_path))
    store.write("folder/file", b"1")
    for action in (lambda: store.write("folder", b"1"), lambda: store.read("folder")):
        with pytest.raises(CacheError, match=f"cannot (read|write) {tmp_path}/folder: "):
            action()
    assert everything(str(tmp_path)) == ["folder/file"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error_with_a_remedy(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CacheError, match="Permission denied; check that the store can be reached, is writable"):
        Store(str(tmp_path / "cache")).check_writable()


def test_unknown_protocols_are_errors_with_a_remedy():
    with pytest.raises(CacheError, match=r"^nope://x: .*use a local path, s3://, gs:// or memory://"):
        filesystem_of("nope://x")


def test_a_missing_client_names_the_extra_that_brings_it():
    code = """
        import sys
        for name in ("s3fs", "gcsfs"):
            sys.modules[name] = None
        from storage.errors import CacheError
        from storage.filesystem import Store
        for url in ("s3://bucket/x", "gs://bucket/x"):
            try:
                Store(url)
            except CacheError as error:
                print(error)
    """
    lines = run_python(code).stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("s3://bucket/x: cannot open s3:// paths (")
    assert lines[0].endswith("pip install 'decant[s3]'")
    assert lines[1].endswith("pip install 'decant[gcs]'")


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_an_error_with_a_remedy(s3_bucket):
    store = Store(f"s3://{s3_bucket}-not/cache")
    for write in (store.check_writable, lambda: store.write("a/b", b"1"), lambda: store.create("a/b", b"1")):
        with pytest.raises(
            CacheError, match=f"cannot (write|create) s3://{s3_bucket}-not/cache/.*check that the store can be reached"
        ):
            write()
    assert store.names("") == []


@pytest.mark.s3
def test_an_endpoint_that_does_not_answer_is_an_error_soon(s3_bucket):
    code = """
        import threading, time
        from storage.errors import CacheError
        from storage.filesystem import Store

        def attempt(action):
            started = time.monotonic()
            try:
                action(Store("s3://bucket/cache"))
            except CacheError as error:
                print(f"{time.monotonic() - started:.1f} {error}\\n", end="")

        actions = [Store.check_writable, lambda store: store.read("x"), lambda store: store.names("x")]
        threads = [threading.Thread(target=attempt, args=(action,)) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    """
    environment = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    result = run_python(code, env=environment, timeout=200)
    lines = result.stdout.splitlines()
    assert len(lines) == 3, result.stderr
    for line in lines:
        seconds, message = line.split(" ", 1)
        assert float(seconds) < 60
        assert message.startswith("cannot ")
        assert "127.0.0.1:9" in message
        assert "check" in message


def test_stores_in_memory_are_of_one_process():
    url = f"memory://{uuid.uuid4().hex}"
    Store(url).write("file", b"1")
    assert fsspec.filesystem("memory").cat_file(f"{url.removeprefix('memory:/')}/file") == b"1"
    assert (
        run_python("import sys; from storage.filesystem import Store; print(Store(sys.argv[1]).exists('file'))", url).stdout
        == "False\n"
    )


def test_a_range_takes_no_more_memory_than_the_file_has(tmp_path):
    store = Store(str(tmp_path))
    store.write("file", b"0123456789")
    # A record may say any number of bytes.
    assert store.read_range("file", start=3, num_bytes=2**62) == b"3456789"
    assert store.read_range("file", start=2**62, num_bytes=2**62) == b""


@pytest.mark.s3
def test_what_another_process_writes_after_a_listing_is_read(s3_bucket):
    import boto3

    folder = uuid.uuid4().hex
    store = Store(f"s3://{s3_bucket}/{folder}")
    store.write("folder/first", b"1")
    assert store.names("folder") == ["folder/first"]
    # Past this process's own client, which would forget its listing.
    boto3.client("s3").put_object(Bucket=s3_bucket, Key=f"{folder}/folder/second", Body=b"22")
    assert store.read("folder/second") == b"22"
    assert store.read_range("folder/second", start=1, num_bytes=5) == b"2"


@pytest.mark.s3
def test_a_forked_process_reads_a_store_and_files_that_were_opened_before(s3_bucket):
    """As the loader processes of a trainer do; the client's own thread is not in them."""
    code = """
        import os, sys, threading
        from storage.filesystem import Store
        from storage.sources.files import open_store
        store = Store(sys.argv[1])
        store.write("file", bytes(range(256)) * 40)
        fs, path = open_store(f"{store.url}/file")
        file = fs.open(path, "rb", block_size=100)
        assert file.read(2) == b"\\0\\1"
        child = os.fork()
        if child == 0:
            try:
                file.seek(5000)
                seen = (store.read_range("file", start=5, num_bytes=2), fs.cat_file(path)[-1:], file.read(2), store.names(""))
                store.write("by the child", repr(seen).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        print(store.read("by the child").decode())
        file.seek(7000)
        assert file.read(2) == bytes([7000 % 256, 7001 % 256])
    """
    result = run_python(code, f"s3://{s3_bucket}/{uuid.uuid4().hex}", timeout=60)
    assert result.stdout == f"{(bytes([5, 6]), bytes([255]), bytes([5000 % 256, 5001 % 256]), ['file'])!r}\n", result.stderr
