"""What a store of files must do, wherever it lies. A test class inherits `StoreContract` and gives a fixture `url`: a place of its own.

What a store holds is looked at with fsspec alone, not with the code under test.
"""

from __future__ import annotations

import pickle
import threading
import time

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.filesystem import Store

NUM_WRITERS = 8


def everything(url: str) -> list[str]:
    """Every file below a URL, by path relative to it."""
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    fs.invalidate_cache()
    return sorted(path[len(root.rstrip("/")) + 1 :] for path in fs.find(root))


class StoreContract:
    """The fixture `url` gives an empty place in a store."""

    @pytest.fixture
    def store(self, url: str) -> Store:
        return Store(url)

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000])
    def test_what_was_written_is_read(self, store, url, data):
        store.write("folder/deep/file.bin", data)
        assert store.read("folder/deep/file.bin") == data
        assert Store(url).read("folder/deep/file.bin") == data
        assert store.size("folder/deep/file.bin") == len(data)
        assert store.exists("folder/deep/file.bin")
        assert everything(url) == ["folder/deep/file.bin"]

    def test_writing_again_replaces(self, store, url):
        store.write("file", b"a long first text")
        store.write("file", b"second")
        assert store.read("file") == b"second"
        assert store.size("file") == 6
        assert everything(url) == ["file"]

    def test_other_names_are_not_there(self, store):
        assert not store.exists("file")
        for name in ("file", "folder/file"):
            with pytest.raises(FileNotFoundError):
                store.read(name)
            with pytest.raises(FileNotFoundError):
                store.read_range(name, start=0, num_bytes=1)
            with pytest.raises(FileNotFoundError):
                store.size(name)
        assert store.names("") == store.names("folder") == []
        store.remove("file")

    def test_what_came_after_a_look_is_seen(self, store, url):
        other = Store(url)
        assert not store.exists("folder/file")
        assert store.names("folder") == []
        other.write("folder/file", b"1")
        assert store.exists("folder/file")
        assert store.names("folder") == ["folder/file"]
        assert store.size("folder/file") == 1
        other.write("folder/file", b"22")
        assert store.size("folder/file") == 2
        assert store.read("folder/file") == b"22"
        other.remove("folder/file")
        assert not store.exists("folder/file")
        assert store.names("folder") == []

    def test_names_are_sorted_and_below_their_folder(self, store):
        for name in ("b/2", "b/10", "a/x/y", "ab/1", "b/with space", "b/ü"):
            store.write(name, b"1")
        assert store.names("b") == ["b/10", "b/2", "b/with space", "b/ü"]
        assert store.names("a") == ["a/x/y"]
        assert store.names("") == sorted(["b/2", "b/10", "a/x/y", "ab/1", "b/with space", "b/ü"])
        assert store.read("b/with space") == store.read("b/ü") == b"1"

    def test_files_are_listed_with_size_and_time(self, store):
        before = store.now()
        sizes = {"b/2": 2, "b/10": 10, "b/x/y": 0, "a/x": 1, "b/.12.partial": 3, ".probe-1": 4}
        for name, num_bytes in sizes.items():
            store.write(name, b"1" * num_bytes)
        after = store.now()

        def listed(*arguments, **options):
            return {file.name: file.num_bytes for file in store.files(*arguments, **options)}

        assert listed("") == sizes
        assert listed("b") == {name: size for name, size in sizes.items() if name.startswith("b/")}
        assert listed("b", beginning="1") == {"b/10": 10}
        assert listed("b", beginning="x") == {"b/x/y": 0}
        assert listed("b", beginning=".") == {"b/.12.partial": 3}
        assert listed("", beginning=".probe-") == {".probe-1": 4}
        assert listed("b", beginning="9") == listed("c") == {}
        for file in store.files(""):
            # Some stores give whole seconds when they are asked for one file.
            assert int(before) <= file.modified <= after + 1
            looked = store.look(file.name)
            assert (looked.name, looked.num_bytes) == (file.name, file.num_bytes)
            assert abs(looked.modified - file.modified) <= 1

    def test_a_look_sees_what_came_after_another(self, store, url):
        with pytest.raises(FileNotFoundError):
            store.look("folder/file")
        Store(url).write("folder/file", b"1")
        first = store.look("folder/file")
        while store.now() == first.modified:
            time.sleep(0.01)
        Store(url).write("folder/file", b"22")
        second = store.look("folder/file")
        assert second.num_bytes == 2
        assert second.modified > first.modified
        Store(url).remove("folder/file")
        with pytest.raises(FileNotFoundError):
            store.look("folder/file")

    def test_what_is_written_later_is_no_older(self, store, url):
        now = store.now()
        assert everything(url) == []
        store.write("file", b"1")
        assert store.look("file").modified >= now
        assert store.now() >= now

    def test_create_makes_a_file_once(self, store, url):
        assert store.create("folder/file", b"first") is True
        assert store.create("folder/file", b"second") is False
        assert Store(url).create("folder/file", b"third") is False
        assert store.read("folder/file") == b"first"
        assert everything(url) == ["folder/file"]
        store.remove("folder/file")
        assert store.create("folder/file", b"fourth") is True

    def test_one_of_many_racing_creators_wins(self, store, url):
        for number in range(10):
            barrier, winners = threading.Barrier(NUM_WRITERS), []

            def race(writer, name=f"race/{number}", barrier=barrier, winners=winners):
                own = Store(url)
                barrier.wait()
                if own.create(name, b"%d" % writer * 1000):
                    winners.append(writer)

            threads = [threading.Thread(target=race, args=(writer,)) for writer in range(NUM_WRITERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(winners) == 1
            assert store.read(f"race/{number}") == b"%d" % winners[0] * 1000
        assert len(everything(url)) == 10

    def test_readers_of_a_file_that_is_replaced_see_one_or_the_other(self, store, url):
        versions = [bytes([letter]) * 300_000 for letter in b"ab"]
        store.write("file", versions[0])
        stop = threading.Event()

        def replace():
            while not stop.is_set():
                for data in versions:
                    store.write("file", data)

        writer = threading.Thread(target=replace)
        writer.start()
        try:
            assert all(Store(url).read("file") in versions for _ in range(40))
        finally:
            stop.set()
            writer.join()
        assert everything(url) == ["file"]

    @settings(max_examples=40, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.function_scoped_fixture])
    @given(start=st.integers(0, 130), num_bytes=st.integers(0, 130))
    def test_ranges_are_slices(self, store, start, num_bytes):
        data = bytes(range(100))
        if not store.exists("file"):
            store.write("file", data)
        assert store.read_range("file", start=start, num_bytes=num_bytes) == data[start : start + num_bytes]

    def test_an_empty_file_has_empty_ranges(self, store):
        store.write("file", b"")
        assert store.read_range("file", start=0, num_bytes=10) == b""

    def test_a_copy_in_another_process_is_the_same_store(self, store):
        store.write("file", b"1")
        copy = pickle.loads(pickle.dumps(store))
        assert copy.url == store.url
        assert repr(copy) == repr(store)
        assert copy.read("file") == b"1"

    def test_a_slash_at_the_end_changes_nothing(self, store, url):
        store.write("folder/file", b"1")
        assert Store(f"{url}/").read("folder/file") == b"1"
        assert Store(f"{url}/").names("folder") == ["folder/file"]

    def test_a_writable_store_says_so_and_keeps_nothing(self, store, url):
        store.check_writable()
        assert everything(url) == []
