"""Several identical runs at once on one cache, on disk and on an S3 server, with a reader beside them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from storage.cache import Cache
from storage.errors import CacheError, DecantError
from storage.label_set import LabelSet
from tests.benchmarks.report import Goal, Report, Table
from tests.pipelines import support
from tests.reliability.runs import NUM_BATCHES, NUM_PARTS, Forked, Run

ROUNDS = {("local disk", 2): 6, ("local disk", 4): 4, ("S3 server", 2): 3}

_METHOD = f"""\
The same `decant label` ({NUM_PARTS} units of work, a teacher that sleeps 0.05 s a batch) is started 2 or 4 times at once on one empty cache,
each in a process of its own (forked from one that has imported everything, so that they really begin together), none knowing of the others. Wanted: every one ends with status 0 and an empty error stream, and the
files that readers may see are byte by byte those of a run that was alone. Meanwhile this process opens the label set by its name
again and again: it must be told that there is none, or get it whole with its class means. The S3 server is `moto`'s, on this machine.
How many batches were computed in all says how much the runs got in each other's way: nobody locks anything, so units that several
runs have in hand at once are computed more than once, and the first one counts."""


@contextmanager
def s3_server() -> Iterator[str]:
    """Start an S3 server on this machine, point the environment to it and give a URL inside a bucket."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        s3fs.S3FileSystem.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket="reliability")
        yield "s3://reliability"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def visible_files(url: str) -> dict[str, bytes]:
    """Return the bytes of every file that readers of a cache may see, by name."""
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    names = {path: path[len(root.rstrip("/")) + 1 :] for path in fs.find(root)}
    return {
        name: fs.cat_file(path)
        for path, name in names.items()
        if name.startswith(("requests/", "label_sets/", "names/")) and not name.rsplit("/", 1)[-1].startswith(".")
    }


def read_until_done(processes: list[Forked], *, cache: str) -> tuple[int, int, list[str]]:
    """Open the label set again and again while runs go on; return looks, looks that found it, and what was wrong."""
    looks = found = 0
    problems: list[str] = []
    while any(process.poll() is None for process in processes):
        looks += 1
        time.sleep(0.01)
        try:
            LabelSet.open(Cache.at(cache), name_or_id="tiny").class_means()
            found += 1
        except CacheError as error:
            if "holds no label set" not in str(error):
                problems.append(str(error))
        except DecantError as error:
            problems.append(str(error))
    return looks, found, problems


def run_round(
    run: Run, *, writers: int, expected: dict[str, bytes], say: Callable[[str], None]
) -> tuple[int, int, int, int, float]:
    """Start all writers at once; return errors of runs, files that differ, wrong looks of the reader, looks, batches a run."""
    processes = [run.start() for _ in range(writers)]
    looks, _, problems = read_until_done(processes, cache=run.cache)
    errors = 0
    for process in processes:
        _, said = process.communicate(timeout=300)
        if process.returncode or said:
            errors += 1
            problems.append(f"status {process.returncode}: {said}")
    files = visible_files(run.cache)
    differing = sum(files.get(name) != expected.get(name) for name in files.keys() | expected.keys())
    for problem in problems:
        say(problem)
    return errors, differing, len(problems) - errors, looks, run.num_batches / NUM_BATCHES


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Run writers side by side."""
    pictures = support.write_folder(folder / "pictures")
    alone = Run(folder / "alone", pictures=pictures)
    alone.finish()
    expected = visible_files(alone.cache)
    rows = []
    with s3_server() as s3:
        for (place, writers), rounds in ROUNDS.items():
            totals = [0, 0, 0, 0]
            work = 0.0
            for number in range(1 if quick else rounds):
                name = f"{place.split()[0]}-{writers}-{number}"
                cache = f"{s3}/{name}" if place.startswith("S3") else None
                trial = Run(folder / name, pictures=pictures, cache=cache)
                found = run_round(trial, writers=writers, expected=expected, say=say)
                totals = [total + value for total, value in zip(totals, found[:4], strict=True)]
                work += found[4]
            rounds = 1 if quick else rounds
            rows.append((place, writers, rounds, *totals, work / rounds))
            say(f"{place}, {writers} writers: {totals}")
    goals = (
        Goal(what="runs beside others that ended with an error or a word on it", measured=sum(row[3] for row in rows), limit=0),
        Goal(what="files that differ from those of a run alone", measured=sum(row[4] for row in rows), limit=0),
        Goal(what="looks of the reader that found something half done", measured=sum(row[5] for row in rows), limit=0),
    )
    columns = (
        "cache on",
        "writers",
        "rounds",
        "runs with an error",
        "files that differ",
        "wrong looks of the reader",
        "looks",
        "batches computed, of one run's",
    )
    return Report(
        name="concurrency",
        title="Concurrency: several writers of one cache",
        method=_METHOD,
        tables=(Table(title="Identical runs at once", columns=columns, rows=tuple(rows)),),
        goals=goals,
        quick=quick,
    )
