import pytest

from cluster.object_store import BUCKET, make_bucket, object_store, objects, put_files, store_environment
from cluster.ports import free_address
from cluster.processes import Processes
from storage.filesystem import Store

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
pytest.importorskip("moto.server", reason="moto[server] is not installed")


@pytest.mark.s3
def test_files_are_put_and_read_by_ordinary_clients(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    folder = tmp_path / "files" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"abc")
    (folder.parent / "b.bin").write_bytes(b"")
    address = free_address("127.0.0.1")
    processes = Processes.create(tmp_path / "cluster")
    try:
        processes.start(object_store(address))
        processes.wait_for_port("object-store")
        make_bucket(address)
        assert put_files(address, folder=tmp_path / "files", prefix="in") == 3
        assert dict(objects(address, prefix="in")) == {"deep/a.bin": b"abc", "b.bin": b""}
        for name, value in store_environment(address).items():
            monkeypatch.setenv(name, value)
        # What other tests opened in this process was elsewhere, under other variables.
        s3fs.S3FileSystem.clear_instance_cache()
        store = Store(f"s3://{BUCKET}/in")
        assert store.read("deep/a.bin") == b"abc"
        assert store.create("new", b"x")
        assert not store.create("new", b"y")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        processes.stop_all()
