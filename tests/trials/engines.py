"""The trial of engines: `python -m tests.trials.engines`.

The same real pictures are labelled by a process of this machine and by every engine that can be had here: Beam's own portable job
service with a worker pool, Prism (built by Go), a Spark cluster of two hosts (jars from PyPI, Beam's job server from Maven), which
this machine plays. Every file that readers look at is compared with those of the local run. An engine that cannot be had is named
with the reason. Flink has a demonstration of its own, `python -m cluster demo`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from apache_beam.runners.portability.local_job_service import LocalJobServicer

from cluster import spark
from cluster.assembly import Shape
from cluster.comparison import cache_files, compare_caches
from cluster.demo import Demo, decant, label_config, prepare
from cluster.downloads import DEFAULT
from cluster.errors import ClusterError
from cluster.flink import java
from cluster.hosts import hosts_on_loopback
from cluster.job_server import SPARK_JOB_SERVER, job_server_jar
from cluster.ports import free_addresses
from cluster.prism import prism
from cluster.processes import Processes, only_one
from cluster.signals import unwind_on_signals
from cluster.spark import SPARK_VERSION, SparkAddresses
from cluster.worker_pools import POOL_NAME, pool_port, worker_pool

HERE = "this machine, one process"
JOB_SERVICE = "Beam's own job service"
PRISM = "Prism"
SPARK = f"Spark {SPARK_VERSION}, two hosts"
_NUM_PICTURES = 2400
_NUM_HOSTS = 2
_REGISTER_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """One engine's run.

    Attributes:
        missing: why the engine cannot be had here; empty where it ran.
        differing: files that are not those of the local run.
    """

    engine: str
    num_rows: int = 0
    seconds: float = 0
    rows_per_second: float = 0
    missing: str = ""
    differing: tuple[str, ...] = ()


@contextlib.contextmanager
def job_service(folder: Path, fetched: None) -> Iterator[list[str]]:
    """Serve Beam's own job service and a worker pool; yield the options that run on it."""
    processes = Processes.create(folder)
    service = LocalJobServicer(staging_dir=str(processes.home("staged")))
    try:
        port = service.start_grpc_server(0)
        (host,) = hosts_on_loopback(1).workers
        pool = worker_pool(host, port=pool_port([host.address]), environment={})
        processes.start(pool)
        processes.wait_for_port(pool.name)
        external = ["--environment_type=EXTERNAL", f"--environment_config={pool.address}"]
        yield ["--runner=PortableRunner", f"--job_endpoint=127.0.0.1:{port}", *external]
    finally:
        service.stop()
        processes.stop_all()


@contextlib.contextmanager
def prism_alone(folder: Path, program: Path) -> Iterator[list[str]]:
    """Yield the options with which a run starts a Prism of its own."""
    yield ["--runner=PrismRunner", f"--prism_location={program}"]


def fetch_spark(downloads: Path) -> tuple[Path, Path]:
    """Return the jar of Beam's job server for Spark, and the folder of Spark's jars.

    Raises:
        ClusterError: Java is not there, or one of them cannot be had.
    """
    java()
    return job_server_jar(SPARK_JOB_SERVER, downloads=downloads), spark.distribution(downloads)


@contextlib.contextmanager
def spark_cluster(folder: Path, fetched: tuple[Path, Path]) -> Iterator[list[str]]:
    """Bring a Spark cluster up, with a worker pool beside each worker; yield the options that run on it."""
    jar, lib = fetched
    processes = Processes.create(folder)
    try:
        hosts = hosts_on_loopback(_NUM_HOSTS)
        master, rest, page = free_addresses(hosts.center, count=3)
        addresses = SparkAddresses(master=master, rest=rest, page=page)
        port = pool_port([host.address for host in hosts.workers])
        scratch = processes.home("spark").resolve()
        processes.start(spark.master(lib, addresses=addresses, scratch=scratch, pool_name=POOL_NAME))
        processes.wait_for_port("spark-master")
        for host in hosts.workers:
            processes.start(spark.worker(lib, host=host, addresses=addresses, scratch=scratch, pool_name=POOL_NAME))
            pool = worker_pool(host, port=port, environment={})
            processes.start(pool)
            processes.wait_for_port(pool.name)
        processes.wait_for(
            [name for name in processes.started if name.startswith("spark")],
            ready=lambda: spark.num_workers(addresses) >= _NUM_HOSTS,
            what=f"not all of {_NUM_HOSTS} workers are registered at {master}",
            timeout_seconds=_REGISTER_SECONDS,
        )
        yield spark.submission_arguments(addresses=addresses, jar=jar, pool=f"{POOL_NAME}:{port}")
    finally:
        processes.stop_all()


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How an engine is had and brought up.

    Attributes:
        fetch: takes the folder of downloads; what it returns goes to `bring_up`. Where it fails, the engine cannot be had here.
        bring_up: takes a folder of its own and what was fetched; gives options of `decant label`. Where it fails, so does the trial.
    """

    title: str
    fetch: Callable[[Path], Any]
    bring_up: Callable[[Path, Any], contextlib.AbstractContextManager[list[str]]]


ENGINES = {
    "job-service": Engine(title=JOB_SERVICE, fetch=lambda downloads: None, bring_up=job_service),
    "prism": Engine(title=PRISM, fetch=prism, bring_up=prism_alone),
    "spark": Engine(title=SPARK, fetch=fetch_spark, bring_up=spark_cluster),
}


class Trial:
    """Pictures, a teacher, and the run of this machine that all others are compared with."""

    def __init__(self, folder: Path, *, num_pictures: int, teacher: Path | None, say: Callable[[str], Any]) -> None:
        self._folder = folder
        demo = Demo(folder=folder, shape=Shape(), num_pictures=num_pictures, teacher=teacher)
        self._pictures, self._teacher, self.what = prepare(demo, say=say)

    def label(self, name: str, *, engine: str, options: list[str]) -> tuple[Ended, dict[str, bytes]]:
        """Label by an engine into a cache of its own; return the figures and the files that readers look at."""
        cache = self._folder / f"{name}-{time.time_ns():x}"
        config = self._folder / f"{name}.json"
        config.write_text(json.dumps(label_config(source=str(self._pictures), cache=str(cache), teacher=self._teacher)))
        figures = decant("label", str(config), *options, log=self._folder / f"{name}.log")
        ended = Ended(
            engine=engine,
            num_rows=figures["num_computed_rows"],
            seconds=figures["seconds"],
            rows_per_second=figures["rows_per_second"] or 0,
        )
        return ended, cache_files(cache)


def markdown(all_ended: list[Ended]) -> str:
    """Return the table of all runs."""
    lines = ["| engine | rows | seconds, with start-up | rows/s, without | same bytes |", "|---|---|---|---|---|"]
    for ended in all_ended:
        same = "yes" if not ended.differing else f"NO: {', '.join(ended.differing[:3])}"
        figures = f"{ended.num_rows:,} | {ended.seconds:.1f} | {ended.rows_per_second:,.0f} | {same}"
        lines.append(f"| {ended.engine} | {f'not to be had here: {ended.missing} | | |' if ended.missing else figures} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the trial and print its table; status 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=[*ENGINES], help="which (default: all)")
    parser.add_argument("--folder", type=Path, default=Path("runs/engines"))
    parser.add_argument("--pictures", type=int, default=_NUM_PICTURES, help=f"pictures to label (default: {_NUM_PICTURES})")
    parser.add_argument(
        "--teacher", type=Path, help="checkpoint of a resnet10t for the ten classes (default: one trained for it)"
    )
    parser.add_argument("--downloads", type=Path, default=DEFAULT, help="where Prism, Spark and Beam's jar are kept")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(NO_PROXY="localhost,127.0.0.1", no_proxy="localhost,127.0.0.1")
    unwind_on_signals()
    say: Callable[[str], Any] = lambda text: sys.stderr.write(f"{text}\n")  # noqa: E731
    all_ended = []
    with only_one(folder):
        trial = Trial(folder, num_pictures=arguments.pictures, teacher=arguments.teacher, say=say)
        here, expected = trial.label("here", engine=HERE, options=[])
        all_ended.append(here)
        for name in arguments.engines:
            engine = ENGINES[name]
            say(f"labelling by {engine.title}")
            try:
                fetched = engine.fetch(arguments.downloads)
            except ClusterError as error:
                say(str(error))
                all_ended.append(Ended(engine=engine.title, missing=str(error).splitlines()[0]))
                continue
            with engine.bring_up(folder / name, fetched) as options:
                ended, files = trial.label(name, engine=engine.title, options=options)
            differing = tuple(file for kind in compare_caches(expected, files) for file in kind.differing)
            all_ended.append(replace(ended, differing=differing))
    sys.stdout.write(f"{trial.what}, {here.num_rows:,} rows\n\n{markdown(all_ended)}")
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(ended) for ended in all_ended], indent=2))
    return 1 if any(ended.differing for ended in all_ended) else 0


if __name__ == "__main__":
    sys.exit(main())
