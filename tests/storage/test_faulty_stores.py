"""Every operation of a store while an S3 server fails: it succeeds when the fault passes, else says so in time; nothing is half there."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter

import boto3
import pytest

from storage import connections
from storage.errors import CacheError
from storage.filesystem import Store
from storage.interchange.output import INCOMPLETE, ExportFolder
from storage.retries import Patience
from storage.sources.files import expand_files, open_store
from tests.contracts.store_contract import everything
from tests.storage.faulty_s3 import PASSING, Fault, every, first

pytestmark = pytest.mark.s3

DATA = bytes(range(256)) * 40


@pytest.fixture
def url(s3_bucket):
    return f"s3://{s3_bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def impatient(faulty_s3, monkeypatch):
    monkeypatch.setattr(connections, "Patience", functools.partial(Patience, seconds=1.0, first_wait_seconds=0.02))


def read_opened(store):
    fs, path = open_store(f"{store.url}/there/file")
    with fs.open(path, "rb", block_size=1000) as file:
        file.seek(5000)
        return file.read(3000)


def run_together(actions):
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


OPERATIONS = {
    "write": lambda store: (store.write("new", DATA), store.read("new"))[1] == DATA,
    "write over": lambda store: (store.write("there/file", b"1"), store.read("there/file"))[1] == b"1",
    "create": lambda store: store.create("new", DATA) is True and store.read("new") == DATA,
    "create again": lambda store: store.create("there/file", DATA) is False,
    "read": lambda store: store.read("there/file") == DATA,
    "read range": lambda store: store.read_range("there/file", start=100, num_bytes=5000) == DATA[100:5100],
    "read range at the end": lambda store: store.read_range("there/file", start=len(DATA) - 10, num_bytes=50) == DATA[-10:],
    "size": lambda store: store.size("there/file") == len(DATA),
    "exists": lambda store: store.exists("there/file") and not store.exists("there/other"),
    "names": lambda store: store.names("") == ["there/file"],
    "folders": lambda store: store.folders("") == ["there"],
    "files": lambda store: [file.num_bytes for file in store.files("")] == [len(DATA)],
    "look": lambda store: store.look("there/file").num_bytes == len(DATA),
    "now": lambda store: abs(store.now() - time.time()) < 60,
    "remove": lambda store: store.remove("there/file") is None and not store.exists("there/file"),
    "move": lambda store: store.move("there/file", to="moved") is None and store.read("moved") == DATA,
    "check writable": lambda store: store.check_writable() is None,
    "open": lambda store: read_opened(store) == DATA[5000:8000],
    "expand": lambda store: [file.size_bytes for file in expand_files(f"{store.url}/*/fil?", suffixes=())] == [len(DATA)],
}


@pytest.mark.parametrize("faults", [PASSING[:4], PASSING[3:]], ids=lambda faults: "-".join(fault.name for fault in faults))
def test_every_operation_survives_a_burst_of_faults(faulty_s3, url, faults):
    """All at once: each operation, in a folder of its own, meets a fault at each of its first four requests."""
    folders = {name: f"{url}/{name.replace(' ', '-')}" for name in OPERATIONS}
    for name, folder in folders.items():
        Store(folder).write("there/file", DATA)
        # What each store can do is asked before, except where that is the question.
        assert name == "check writable" or Store(folder).creates_at_once
    met = Counter()

    def decide(request):
        path = f"{request.path.replace('%2F', '/')}/"
        name = next((name for name, folder in folders.items() if f"{folder.split('/', 3)[3]}/" in path), None)
        met[name] += 1
        return faults[met[name] - 1] if name is not None and met[name] <= 4 else None

    faulty_s3.start(decide)
    failed = []

    def run(name):
        try:
            if not OPERATIONS[name](Store(folders[name])):
                failed.append((name, "another result"))
        except Exception as error:
            failed.append((name, repr(error)))

    run_together([functools.partial(run, name) for name in OPERATIONS])
    assert failed == []
    assert set(faulty_s3.met) == set(faults)
    assert min(met[name] for name in OPERATIONS) >= 5


def test_operations_survive_when_every_third_request_fails(faulty_s3, url):
    faulty_s3.start(every(3, *PASSING))
    for number, (name, operation) in enumerate(OPERATIONS.items()):
        store = Store(f"{url}/{number}")
        store.write("there/file", DATA)
        assert operation(store), name
    assert sum(faulty_s3.met.values()) > 20


def test_an_outage_of_seconds_is_waited_for(faulty_s3, url):
    store = Store(url)
    store.write("file", b"1")
    until = time.monotonic() + 2
    faulty_s3.start(lambda request: Fault.UNAVAILABLE if time.monotonic() < until else None)
    store.write("other", b"2")
    assert time.monotonic() > until
    assert store.names("") == ["file", "other"]


def test_a_store_that_stays_away_is_an_error_in_time_and_nothing_is_half_there(faulty_s3, url, impatient):
    store = Store(url)
    store.write("there/file", DATA)
    assert store.creates_at_once
    for fault in (Fault.UNAVAILABLE, Fault.DROP_BEFORE):
        faulty_s3.start(first(10**6, fault))
        actions = {
            "write": lambda: store.write("new", DATA),
            "create": lambda: store.create("new", DATA),
            "read": lambda: store.read("there/file"),
            "range": lambda: store.read_range("there/file", start=0, num_bytes=5),
            "list": lambda: store.names(""),
            "look": lambda: store.look("there/file"),
            "remove": lambda: store.remove("there/file"),
        }
        errors = {}

        def attempt(name, action, errors=errors):
            started = time.monotonic()
            with pytest.raises(CacheError) as caught:
                action()
            errors[name] = (str(caught.value), time.monotonic() - started)

        run_together([functools.partial(attempt, *item) for item in actions.items()])
        for message, seconds in errors.values():
            assert message.startswith("cannot ")
            assert url in message
            assert "tried" in message
            assert "run the same command again" in message
            assert seconds < 10
        assert len(errors) == len(actions)
    faulty_s3.start(first(0, Fault.UNAVAILABLE))
    assert everything(url) == ["there/file"]
    assert store.read("there/file") == DATA


def test_a_store_that_comes_back_is_used_again(faulty_s3, url, impatient):
    store = Store(url)
    faulty_s3.start(first(10**6, Fault.UNAVAILABLE))
    with pytest.raises(CacheError):
        store.write("file", DATA)
    faulty_s3.start(first(0, Fault.UNAVAILABLE))
    store.write("file", DATA)
    assert store.read("file") == DATA


def test_a_short_answer_is_asked_for_again(faulty_s3, url):
    store = Store(url)
    store.write("there/file", DATA)
    faulty_s3.start(lambda request: Fault.SHORTEN if request.method == "GET" and request.number == 0 else None)
    assert store.read_range("there/file", start=100, num_bytes=5000) == DATA[100:5100]
    assert faulty_s3.met[Fault.SHORTEN] == 1
    opening = Counter()

    def shorten_once(request):
        opening[request.method] += 1
        return Fault.SHORTEN if request.method == "GET" and opening["GET"] == 1 else None

    faulty_s3.start(shorten_once)
    assert read_opened(store) == DATA[5000:8000]
    assert faulty_s3.met[Fault.SHORTEN] == 1


def test_slow_answers_are_waited_for(faulty_s3, url):
    faulty_s3.start(first(10**6, Fault.DELAY))
    store = Store(url)
    assert store.create("file", b"1")
    assert store.read("file") == b"1"
    assert faulty_s3.met[Fault.DELAY]


# Large files, in pieces

PIECE = 5 * 2**20  # S3 takes no smaller ones
PIECES = 2 * PIECE + 1000


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(connections, "PIECE_BYTES", PIECE)


def uploads_left(bucket):
    return boto3.client("s3").list_multipart_uploads(Bucket=bucket).get("Uploads", [])


def test_a_large_file_goes_in_pieces_and_comes_whole_though_pieces_fail(faulty_s3, s3_bucket, url):
    data = bytes(PIECES - 4) + b"last"
    faulty_s3.start(every(3, *PASSING))
    Store(url).write("large", data)
    pieces = [request for request in faulty_s3.seen if "partNumber" in request.path]
    assert len({request.path for request in pieces}) >= 3
    assert len(pieces) > 3
    assert sum(faulty_s3.met.values())
    faulty_s3.start(first(0, Fault.CUT))
    store = Store(url)
    assert store.size("large") == PIECES
    assert store.read_range("large", start=PIECES - 4, num_bytes=4) == b"last"
    assert store.read("large") == data


def test_a_large_file_whose_end_was_not_heard_of_is_whole(faulty_s3, url):
    def lose_the_end(request):
        ends = request.method == "POST" and "uploadId" in request.path
        return Fault.DROP_AFTER if ends and not faulty_s3.met[Fault.DROP_AFTER] else None

    faulty_s3.start(lose_the_end)
    Store(url).write("large", b"1" * PIECES)
    assert faulty_s3.met[Fault.DROP_AFTER] == 1
    assert Store(url).size("large") == PIECES


def test_a_large_file_is_created_in_one_request_and_once(faulty_s3, url):
    store = Store(url)
    assert store.creates_at_once
    faulty_s3.start(first(1, Fault.DROP_AFTER))
    assert store.create("large", b"1" * PIECES) is True
    assert [request.num_bytes for request in faulty_s3.seen if request.method == "PUT"] == [PIECES, PIECES]
    assert store.create("large", b"2" * PIECES) is False
    assert store.read_range("large", start=PIECES - 3, num_bytes=3) == b"111"


def test_a_large_file_that_cannot_be_finished_leaves_nothing(faulty_s3, s3_bucket, url, impatient):
    store = Store(url)
    store.write("large", b"old")
    left = len(uploads_left(s3_bucket))

    def fail_third_piece(request):
        return Fault.INTERNAL_ERROR if "partNumber=3" in request.path else None

    faulty_s3.start(fail_third_piece)
    with pytest.raises(CacheError, match="cannot write s3://.*/large: .*tried"):
        store.write("large", b"1" * PIECES)
    assert store.read("large") == b"old"
    assert store.names("") == everything(url) == ["large"]
    assert len(uploads_left(s3_bucket)) == left


WRITE_LARGE = f"""
import sys
from storage import connections
from storage.filesystem import Store
connections.PIECE_BYTES = {PIECE}
Store(sys.argv[1]).write("large", b"2" * {PIECES})
"""


def test_a_writer_that_is_killed_between_pieces_leaves_nothing_to_be_seen(faulty_s3, url):
    store = Store(url)
    store.write("large", b"old")
    third = threading.Event()

    def hang_at_the_third_piece(request):
        if "partNumber=3" in request.path:
            third.set()
            return Fault.DELAY
        return None

    faulty_s3.delay_seconds = 2
    faulty_s3.start(hang_at_the_third_piece)
    process = subprocess.Popen([sys.executable, "-c", WRITE_LARGE, url])
    assert third.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    faulty_s3.start(first(0, Fault.DELAY))
    assert store.read("large") == b"old"
    assert store.names("") == everything(url) == ["large"]


# Exports


def export(url):
    with ExportFolder(url) as folder:
        for name in ("one", "two"):
            with folder.create(name) as file:
                file.write(DATA)
        folder.commit({})


def test_an_export_survives_faults_and_is_not_there_before_it_is_whole(faulty_s3, url, impatient):
    faulty_s3.start(every(3, *PASSING))
    export(f"{url}/whole")
    faulty_s3.start(first(0, Fault.CUT))
    assert everything(f"{url}/whole") == ["export.json", "one", "two"]
    assert Store(f"{url}/whole").read("two") == DATA
    faulty_s3.start(lambda request: Fault.UNAVAILABLE if request.path.endswith("/two") else None)
    with pytest.raises(CacheError, match="nothing was exported"):
        export(f"{url}/half")
    assert everything(f"{url}/half") in ([], [INCOMPLETE])
