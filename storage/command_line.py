"""The command line of `decant`: its commands and their arguments. What they do is in decant.py."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from storage.commands import add_cache_actions, positive_number
from storage.errors import ConfigError, UsageError


class Add(Protocol):
    """Adds the parser of one command."""

    def __call__(self, name: str, *, parents: list[argparse.ArgumentParser], text: str, example: str) -> argparse.ArgumentParser:
        """Return it; it takes the arguments of its parents, too."""


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong with the words, so that it is said like every other error: as JSON, too."""

    def error(self, message: str) -> NoReturn:
        """Refuse words.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of every command; what a command does not know is left to Beam.

    It raises `UsageError` where argparse would end the process.
    """

    def formatter(prog: str) -> argparse.HelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object with the figures instead of text")
    common.add_argument("--verbose", action="store_true", help="show what the libraries log, and tracebacks of errors")
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument("config", help="experiment, a YAML file (docs/configuration.md lists every key)")
    config.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, for instance --set training.seed=1; repeatable",
    )
    parser: argparse.ArgumentParser = _Parser(
        prog="decant",
        description="Distil models offline: label once with a teacher, train students from the stored labels.",
        epilog="example:\n  decant demo\n  decant label configs/digits.yaml\n  decant train configs/digits.yaml",
        formatter_class=formatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, *, parents: list[argparse.ArgumentParser], text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, parents=parents, help=text, description=text, epilog=f"example:\n  {example}", formatter_class=formatter
        )

    _add_demo(add, common=common)
    for add_command in (_add_plan, _add_label, _add_audit, _add_repair):
        add_command(add, common=common, config=config)
    _add_doctor(add, common=common)
    _add_train(add, common=common, config=config)
    cache = commands.add_parser(
        "cache",
        help="What is in a cache, whether every byte of it is right; names, differences, garbage, export and import.",
        description="What is in a cache, whether every byte of it is right; names, differences, garbage, export and import.",
        epilog="example:\n  decant cache ls runs/demo/cache\n  decant cache verify runs/demo/cache",
        formatter_class=formatter,
    )
    actions = cache.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_cache_actions(actions, common=common, formatter=formatter)
    return parser


def check_experiment_word(config: str, *, rest: Sequence[str]) -> None:
    """Refuse a value of an option of Beam that was taken for the experiment: which options of Beam take values is not known here.

    Args:
        config: what was taken for the experiment.
        rest: words that belong to no option of Decant.

    Raises:
        ConfigError: it is no file but the name of a runner, or there is a file among the rest.
    """
    if "://" in config or Path(config).exists():
        return
    found = next((word for word in rest if not word.startswith("-") and Path(word).is_file()), None)
    if found is None and not config.lower().endswith("runner"):
        return
    option = next((word for word in rest if word.startswith("--") and "=" not in word), "--runner")
    raise ConfigError(
        f"{config} was taken for the experiment, and there is no such file. If it is the value of {option}, write "
        f"{option}={config}, or put the experiment first: {found or 'EXPERIMENT.yaml'} {option} {config}"
    )


def set_hint(words: Sequence[str]) -> str:
    """Return what to do where one of the words that nobody knows is a key of the config and its value; "" where none is."""
    found = next((word for word in words if "=" in word and not word.startswith("-")), None)
    return "" if found is None else f"; a key of the config is set with --set {shlex.quote(found)}"


def _add_demo(add: Add, *, common: argparse.ArgumentParser) -> None:
    demo = add(
        "demo",
        parents=[common],
        text="Teacher, labels and students on real data, in a few minutes.",
        example="decant demo\n  decant demo --text",
    )
    demo.add_argument("--text", action="store_true", help="a language model on Python's documentation, in place of pictures")
    demo.add_argument("--folder", help="where everything is written (default: runs/demo, with --text runs/demo_text)")
    demo.add_argument("--seeds", type=int, default=3, help="students of each kind (default: 3)")


def _add_plan(add: Add, *, common: argparse.ArgumentParser, config: argparse.ArgumentParser) -> None:
    plan = add(
        "plan",
        parents=[common, config],
        text="Say what labelling would reuse, compute and cost; to measure, some samples are labelled and thrown away.",
        example="decant plan configs/digits.yaml --why",
    )
    plan.add_argument(
        "--why", action="store_true", help="also compare what is asked for with the nearest labels of the cache, field by field"
    )
    plan.add_argument(
        "--no-estimate", action="store_true", help="do not measure what labels cost, which runs the teacher on some samples"
    )


def _add_label(add: Add, *, common: argparse.ArgumentParser, config: argparse.ArgumentParser) -> None:
    label = add(
        "label",
        parents=[common, config],
        text="Run the teacher on what is not labelled yet and commit the label set. Unknown options go to Beam.",
        example="decant label configs/digits.yaml --workers 2\n"
        "  decant label configs/imagenet22k_labels.yaml --runner=FlinkRunner --flink_master=host:8081 --detach",
    )
    label.add_argument("--workers", type=int, help="processes on this machine (default: generation.workers)")
    label.add_argument(
        "--preflight",
        action="store_true",
        help="first send a tiny job, as decant doctor does; an error ends the run before its work",
    )
    label.add_argument(
        "--retry-dead-letters",
        action="store_true",
        help="also compute rows without a label, where pictures are unchanged",
    )
    label.add_argument(
        "--detach",
        action="store_true",
        help="submit the run and end; decant cache watch follows it, and the same command again commits the label set",
    )
    label.add_argument("--anyway", action="store_true", help="help a detached run that computes the same at this moment")
    label.add_argument(
        "--progress-seconds",
        type=positive_number,
        metavar="SECONDS",
        help="a plain line about progress so often, on standard error (default: a bar, on terminals only)",
    )


def _add_audit(add: Add, *, common: argparse.ArgumentParser, config: argparse.ArgumentParser) -> None:
    audit = add(
        "audit",
        parents=[common, config],
        text="Run the teacher again on some of the labelled rows and compare; exit status 1 where they differ.",
        example="decant audit configs/digits.yaml --rows 256",
    )
    audit.add_argument("--label-set", help="name or id (default: the one the config's name points at)")
    audit.add_argument("--rows", type=int, default=64, help="rows to look at (default: 64)")
    audit.add_argument(
        "--threshold",
        type=float,
        help="largest total variation (of vectors: distance) that passes (default: by target, precision and codec)",
    )
    audit.add_argument("--seed", type=int, default=0, help="another one chooses other rows (default: 0)")


def _add_repair(add: Add, *, common: argparse.ArgumentParser, config: argparse.ArgumentParser) -> None:
    repair = add(
        "repair",
        parents=[common, config],
        text="Check every byte of an experiment's labels; compute anew what is damaged or missing. Unknown options go to Beam.",
        example="decant repair configs/digits.yaml",
    )
    repair.add_argument("--dry-run", action="store_true", help="only say what is damaged")


def _add_doctor(add: Add, *, common: argparse.ArgumentParser) -> None:
    doctor = add(
        "doctor",
        parents=[common],
        text="Ask this machine, and every worker of an engine, whether it could label: versions, device, memory, store, clock.\n"
        "A config says what else must be reached. Unknown options go to Beam. Exit status 1: something is in the way.",
        example="decant doctor\n  decant doctor configs/imagenet22k_labels.yaml --runner=FlinkRunner --flink_master=host:8081",
    )
    doctor.usage = "decant doctor [config] [options] [options of Beam]"
    doctor.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the config; repeatable"
    )
    doctor.add_argument("--workers", type=int, help="processes on this machine (default: generation.workers, or 1)")
    doctor.add_argument("--elements", type=int, help="what the job is cut into (default: 4 for each worker known of)")
    doctor.add_argument(
        "--timeout", type=float, default=120.0, help="seconds after which a job on another machine is given up (default: 120)"
    )


def _add_train(add: Add, *, common: argparse.ArgumentParser, config: argparse.ArgumentParser) -> None:
    train = add(
        "train",
        parents=[common, config],
        text="Train a student: from cached labels, from hard labels, or with the teacher beside it.",
        example="decant train configs/digits.yaml --set training.seed=1",
    )
    train.add_argument("--restart", action="store_true", help="begin anew instead of going on from the newest checkpoint")
