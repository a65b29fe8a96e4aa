"""`python -m cluster up|down|status|demo`: a Flink cluster of several hosts, played on this machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from cluster import flink
from cluster.assembly import Shape, bring_up, is_complete, status_rows, submission_arguments, take_down
from cluster.downloads import DEFAULT
from cluster.processes import Processes, only_one
from cluster.shipping import CODES, INSTALLED
from cluster.signals import unwind_on_signals
from storage.errors import DecantError

_REST_PORT = 8081
_EXIT_INTERRUPTED = 130


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _shape(arguments: argparse.Namespace) -> Shape:
    return Shape(
        num_hosts=arguments.hosts,
        workers_per_host=arguments.workers_per_host,
        rest_port=arguments.rest_port,
        with_job_server=arguments.job_server,
        own_networks=arguments.own_networks,
        code=arguments.code,
    )


def _up(arguments: argparse.Namespace) -> int:
    with only_one(arguments.folder):
        processes = Processes.find(arguments.folder)
        if processes is not None and not is_complete(processes):
            _say(_half_up(arguments.folder))
            return 1
        if processes is not None:
            ended = [row[0] for row in status_rows(processes) if row[3] == "ended"]
            if not ended:
                _say(f"the cluster of {arguments.folder} is up already")
                _say(_how_to(processes))
                return 0
            _say(f"the cluster of {arguments.folder} is up, but {', '.join(ended)} ended; run `python -m cluster down` first")
            return 1
        processes = bring_up(
            arguments.folder, shape=_shape(arguments), downloads=arguments.downloads, jar=arguments.job_server_jar, say=_say
        )
    _say(_how_to(processes))
    return 0


def _half_up(folder: Path) -> str:
    down = f"python -m cluster down --folder {folder}"
    return f"the cluster of {folder} is up in parts: what brought it up was killed; run `{down}` first"


def _how_to(processes: Processes) -> str:
    facts = processes.facts
    text = (
        f"Flink's page: {facts['flink']}   store: {facts['bucket']} at {facts['store']}\n"
        f"label on it:\n  . {processes.folder}/environment.sh\n  decant label CONFIG $DECANT_ON_CLUSTER"
    )
    if "job_endpoint" in facts:
        through = " ".join(submission_arguments(processes, through_job_server=True))
        text += f"\nor through the job server:\n  decant label CONFIG {through}"
    return text


def _down(arguments: argparse.Namespace) -> int:
    # A folder that is not there is not made.
    with only_one(arguments.folder) if arguments.folder.exists() else contextlib.nullcontext():
        num_ended = take_down(arguments.folder)
    _say(f"{num_ended} processes ended" if num_ended else f"no cluster is up in {arguments.folder}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    processes = Processes.find(arguments.folder)
    if processes is None:
        _say(f"no cluster is up in {arguments.folder}")
        return 1
    if not is_complete(processes):
        _say(_half_up(arguments.folder))
        return 1
    rows = status_rows(processes)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        _say("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
    overview = flink.ask(processes.facts["flink"].removeprefix("http://"), "overview")
    if overview is None:
        _say("Flink does not answer")
    else:
        _say(
            f"Flink {overview['flink-version']}: {overview['slots-available']} of {overview['slots-total']} slots free, "
            f"{overview['jobs-running']} jobs running, {overview['jobs-finished']} finished, {overview['jobs-failed']} failed"
        )
    _say(_how_to(processes))
    return 0 if overview is not None and all(row[3] not in {"ended"} for row in rows) else 1


def _demo(arguments: argparse.Namespace) -> int:
    from cluster.demo import Demo, run_demo

    demo = Demo(
        folder=arguments.folder,
        shape=_shape(arguments),
        num_pictures=arguments.pictures,
        teacher=arguments.teacher,
    )
    with only_one(arguments.folder):
        return run_demo(demo, downloads=arguments.downloads, jar=arguments.job_server_jar, say=_say)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)

    def add(name: str, text: str, *, run: Callable[[argparse.Namespace], int], folder: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text)
        action.set_defaults(run=run)
        action.add_argument(
            "--folder", type=Path, default=Path(folder), help=f"state, logs and scratch space (default: {folder})"
        )
        return action

    def add_shape(action: argparse.ArgumentParser, *, rest_port: int) -> None:
        action.add_argument("--hosts", type=_positive, default=2, help="hosts with a TaskManager and a worker pool (default: 2)")
        action.add_argument("--workers-per-host", type=_positive, default=1, help="Python processes a host (default: 1)")
        action.add_argument(
            "--rest-port", type=int, default=rest_port, help=f"of Flink's page; 0: one that is free (default: {rest_port})"
        )
        action.add_argument("--job-server", action="store_true", help="also run Beam's job server as a process")
        action.add_argument(
            "--own-networks", action="store_true", help="hosts have networks and disks of their own (Linux, as root)"
        )
        action.add_argument(
            "--code",
            choices=CODES,
            default=INSTALLED,
            help="how workers get Decant: it is installed there, or jobs bring it (needs Go; default: installed)",
        )
        action.add_argument("--job-server-jar", type=Path, help="Beam's Flink job server (default: from Maven, once)")
        action.add_argument(
            "--downloads", type=Path, default=DEFAULT, help=f"where Flink and the jar are kept (default: {DEFAULT})"
        )

    up = add("up", "Bring a cluster up and leave it running.", run=_up, folder="runs/cluster")
    add_shape(up, rest_port=_REST_PORT)
    add("down", "End every process that `up` started.", run=_down, folder="runs/cluster")
    add("status", "Say what runs; exit status 1 where something ended.", run=_status, folder="runs/cluster")
    demo = add(
        "demo",
        "Bring a cluster up, label pictures on it, compare every digest with a local run, take it down.",
        run=_demo,
        folder="runs/cluster-demo",
    )
    add_shape(demo, rest_port=0)
    demo.add_argument("--pictures", type=_positive, default=6000, help="pictures to label (default: 6000)")
    demo.add_argument("--teacher", type=Path, help="folder of a timm checkpoint (default: a small untrained network)")
    return parser


def main() -> int:
    """Run a command and return its exit status."""
    arguments = _parser().parse_args()
    unwind_on_signals()
    os.environ.pop("AWS_PROFILE", None)
    try:
        return int(arguments.run(arguments))
    except DecantError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return _EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
