"""The actions of `decant cache`: their arguments, and what they call. An action's code is imported when it runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, Protocol

_LABEL_SET = "name or id of a label set"


class Actions(Protocol):
    """What `add_subparsers` returns."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """Add the parser of one action."""


def positive_number(text: str) -> float:
    """Return what an argument says, for argparse.

    Raises:
        ArgumentTypeError: it is no number above 0.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def add_cache_actions(
    actions: Actions, *, common: argparse.ArgumentParser, formatter: Callable[[str], argparse.HelpFormatter]
) -> None:
    """Add one parser an action; `common` holds the options that all commands have."""

    def add(name: str, *, text: str, example: str, first: str = "cache") -> argparse.ArgumentParser:
        action = actions.add_parser(
            name,
            parents=[common],
            help=text,
            description=text,
            epilog=f"example:\n  decant cache {name} {example}",
            formatter_class=formatter,
        )
        if first == "cache":
            action.add_argument("cache", help="local path or fsspec URL of the cache")
        return action

    add("ls", text="List the label sets of a cache.", example="runs/demo/cache")
    show = add(
        "show",
        text="Say what a label set is: teacher, views, target, rows, bytes, mass kept, provenance, dead letters.",
        example="runs/demo/cache digits",
    )
    show.add_argument("label_set", help=_LABEL_SET)
    show.add_argument("--dead-letters", action="store_true", help="list every sample that has no label, with the reason")
    verify = add(
        "verify",
        text="Check every byte of a label set or of all; exit status 1 if anything is wrong.",
        example="runs/demo/cache",
    )
    verify.add_argument("label_set", nargs="?", help=_LABEL_SET)
    verify.add_argument("--quick", action="store_true", help="manifests and sizes only")
    tag = add(
        "tag", text="Give a label set a name that no run of `decant label` moves.", example="runs/demo/cache digits paper-table-2"
    )
    tag.add_argument("label_set", help=_LABEL_SET)
    tag.add_argument("tag", help="letters, digits, '.', '_' and '-'")
    tag.add_argument("--delete", action="store_true", help="take the tag away; the label set stays")
    tag.add_argument("--force", action="store_true", help="also where the name is taken or its file is damaged")
    diff = add(
        "diff",
        text="Say how two label sets differ, and why one was not reused for the other.",
        example="runs/demo/cache digits paper-table-2\n"
        "  decant cache diff runs/demo/cache digits digits --other-cache s3://bucket/decant",
    )
    diff.add_argument("label_set", help=_LABEL_SET)
    diff.add_argument("other", help="the label set to compare it with")
    diff.add_argument("--other-cache", metavar="CACHE", help="the cache of the other label set (default: the same)")
    watch = add(
        "watch",
        text="Follow a run of `decant label` until it ends: status 0 when all parts are there, 1 if it failed. Ctrl-C ends only "
        "the watching.",
        example="runs/demo/cache digits --once --json\n  decant cache watch s3://bucket/decant 20260131-120000-1234abcd",
    )
    watch.add_argument("run", nargs="?", help="a run, the beginning of its name, or an experiment's name (default: the newest)")
    watch.add_argument("--list", action="store_true", help="list the runs that can be followed")
    watch.add_argument("--once", action="store_true", help="say how it stands and end")
    watch.add_argument(
        "--patience-minutes",
        type=float,
        metavar="MINUTES",
        default=10.0,
        help="give up on a run whose workers are silent for so long (default: 10)",
    )
    watch.add_argument(
        "--progress-seconds",
        type=positive_number,
        metavar="SECONDS",
        help="a plain line so often (default: a bar on a terminal, elsewhere a line a minute)",
    )
    gc = add("gc", text="Find what no label set refers to; --delete removes it.", example="runs/demo/cache --delete")
    gc.add_argument("--delete", action="store_true", help="really remove files (default: only say which)")
    gc.add_argument("--grace-hours", type=float, default=24.0, help="keep what is younger, by the store's clock (default: 24)")
    gc.add_argument("--untagged-days", type=float, default=30.0, help="age of label sets without a name to list (default: 30)")
    gc.add_argument("--untagged", action="store_true", help="such label sets go too, with the parts only they name")
    gc.add_argument("--memos", action="store_true", help="old memos of sources and teachers go too; they save time only")
    export = add(
        "export",
        text="Write labels for other readers: Parquet, a plain WebDataset, or TinyViT's logits folder.",
        example="runs/demo/cache digits --to exported --layout parquet",
    )
    export.add_argument("label_set", help=_LABEL_SET)
    export.add_argument("--to", required=True, metavar="FOLDER", help="new folder, local path or fsspec URL")
    export.add_argument("--layout", required=True, choices=("parquet", "webdataset", "tinyvit"), help="see docs/interchange.md")
    export.add_argument("--views", help="views to export, for instance 0-3,7 (default: all)")
    export.add_argument("--force", action="store_true", help="replace an export that lies there")
    imported = add(
        "import-tinyvit",
        first="folder",
        text="Make a label set of a logits folder in TinyViT's layout.",
        example="logits/ runs/cache --name tinyvit-22k --teacher CLIP-ViT-L/14-22k --num-classes 21841 --image-size 224\n"
        "  what the demo's labels become when they leave and come back:\n"
        "  decant cache export runs/demo/cache digits --to runs/logits --layout tinyvit\n"
        "  decant cache import-tinyvit runs/logits runs/back --name digits --teacher resnet10t --num-classes 10 --image-size 32",
    )
    imported.add_argument("folder", help="folder that holds logits_top100_epoch0 and so on")
    imported.add_argument("cache", help="local path or fsspec URL of the cache")
    imported.add_argument("--name", required=True, help="name of the label set")
    imported.add_argument("--teacher", required=True, help="what made the labels; recorded, not checked")
    imported.add_argument("--num-classes", required=True, type=int, help="classes of the teacher")
    imported.add_argument("--image-size", required=True, help="pixels of the teacher's input, for instance 224")
    imported.add_argument("--epochs", help="epochs to import, for instance 0-89 (default: all); each becomes a view")
    imported.add_argument("--source", metavar="CONFIG", help="experiment whose source holds the pictures (default: keys alone)")
    imported.add_argument(
        "--keys",
        default="name",
        choices=("name", "stem", "position"),
        help="what its keys are in the source (default: name)",
    )
    imported.add_argument("--unit-size", type=int, default=4000, help="samples in one unit without a source (default: 4000)")
    imported.add_argument(
        "--dead-letter-limit", type=float, default=0.01, help="share of unusable rows that fails (default: 0.01)"
    )


def run_cache_action(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run an action; its figures, with a readable form under "text"."""
    progress = not arguments.json
    match arguments.action:
        case "ls":
            from storage.catalogue import list_cache

            return list_cache(arguments.cache)
        case "show":
            from storage.catalogue import show_label_set

            return show_label_set(arguments.cache, name=arguments.label_set, with_dead_letters=arguments.dead_letters)
        case "verify":
            from storage.catalogue import verify_label_sets

            return verify_label_sets(arguments.cache, name=arguments.label_set, quick=arguments.quick, progress=progress)
        case "tag":
            from storage.upkeep.tags import delete_tag, set_tag

            if arguments.delete:
                return delete_tag(arguments.cache, name=arguments.tag, label_set=arguments.label_set, force=arguments.force)
            return set_tag(arguments.cache, label_set=arguments.label_set, name=arguments.tag, force=arguments.force)
        case "diff":
            from storage.upkeep.comparison import compare_label_sets

            return compare_label_sets(
                arguments.cache,
                label_set=arguments.label_set,
                other_url=arguments.other_cache,
                other_label_set=arguments.other,
            )
        case "watch":
            from storage.upkeep.watching import list_runs, watch

            if arguments.list:
                return list_runs(arguments.cache)
            return watch(
                arguments.cache,
                run=arguments.run,
                once=arguments.once,
                patience_minutes=arguments.patience_minutes,
                line_seconds=arguments.progress_seconds,
                show=progress,
            )
        case "gc":
            from storage.upkeep.garbage import collect_garbage

            return collect_garbage(
                arguments.cache,
                delete=arguments.delete,
                grace_hours=arguments.grace_hours,
                untagged_days=arguments.untagged_days,
                untagged=arguments.untagged,
                memos=arguments.memos,
            )
        case "export":
            from storage.interchange.commands import export_label_set

            return export_label_set(
                arguments.cache,
                name=arguments.label_set,
                target=arguments.to,
                layout=arguments.layout,
                views=arguments.views,
                force=arguments.force,
                progress=progress,
            )
        case _:
            from storage.config import load_config
            from storage.interchange.commands import import_tinyvit_folder

            source = None if arguments.source is None else load_config(arguments.source).source
            return import_tinyvit_folder(
                arguments.folder,
                arguments.cache,
                name=arguments.name,
                teacher=arguments.teacher,
                num_classes=arguments.num_classes,
                image_size=arguments.image_size,
                epochs=arguments.epochs,
                source=source,
                keys=arguments.keys,
                unit_size=arguments.unit_size,
                dead_letter_limit=arguments.dead_letter_limit,
                progress=progress,
            )
