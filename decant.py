"""The `decant` command. Thin: a command's code is imported when it runs, so that training needs no Beam and `cache` no torch."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from storage.command_line import check_experiment_word, make_parser, set_hint
from storage.commands import run_cache_action
from storage.errors import DecantError, UsageError

_EXIT_INTERRUPTED = 130
_MAX_MESSAGE = 400


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _silent(text: str) -> None:
    pass


def _speaks() -> bool:
    """Whether this process speaks for all that a launcher (torchrun, accelerate) started for one training."""
    return os.environ.get("RANK", "0") == "0"


def _told(found: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Say the readable form of what was found, and return its figures."""
    text = found.pop("text")
    if not arguments.json:
        _say(text)
    return found


def _load(arguments: argparse.Namespace) -> Any:
    from storage.config import load_config
    from storage.config.neighbours import neighbours

    config = load_config(arguments.config, overrides=arguments.set)
    arguments.hint = neighbours(config, origin=arguments.config)
    return config


def _check_credentials(config: Any) -> None:
    """Refuse stores that cannot be used before frameworks are imported, which takes longer than to find out."""
    from storage.credentials import check_credentials, stores_of

    check_credentials(stores_of(config))


def _need(extra: str, error: ImportError) -> NoReturn:
    if (error.name or "").partition(".")[0] in {"pipelines", "storage", "student_training"}:
        raise error
    raise DecantError(f"this command needs more packages ({error}); pip install 'decant[{extra}]'") from error


def _plan(arguments: argparse.Namespace) -> dict[str, Any]:
    config = _load(arguments)
    _check_credentials(config)
    try:
        from pipelines.estimate import estimate
        from pipelines.label import plan_runs
    except ImportError as error:
        _need("label", error)
    runs = plan_runs(config, progress=not arguments.json)
    costs = [None for _ in runs] if arguments.no_estimate else estimate(runs)
    found = [_describe_plan(run, cost=cost, why=arguments.why) for run, cost in zip(runs, costs, strict=True)]
    texts = [summary.pop("text") for summary in found]
    if not arguments.json:
        _say("\n\n".join(texts))
    return _of_targets(config, found)


def _describe_plan(run: Any, *, cost: Any, why: bool) -> dict[str, Any]:
    from pipelines.describe import describe_plan

    summary = describe_plan(run, estimate=cost)
    if why:
        from storage.upkeep.comparison import compare_request

        found = compare_request(
            run.cache.store.url,
            request=run.plan.request,
            units=run.units,
            num_views=run.plan.num_views,
            classes=run.source.classes,
        )
        summary["text"] = f"{summary['text']}\n\n{found.pop('text')}"
        summary["why"] = found
    return summary


def _of_targets(config: Any, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the only target, or those of each by its name."""
    if config.targets is None:
        return found[0]
    return {"name": config.name, "targets": dict(zip(config.targets, found, strict=True))}


def _label(arguments: argparse.Namespace, beam_arguments: list[str]) -> dict[str, Any]:
    check_experiment_word(arguments.config, rest=beam_arguments)
    if arguments.workers is not None:
        arguments.set.append(f"generation.workers={arguments.workers}")
    config = _load(arguments)
    _check_credentials(config)
    try:
        from pipelines.describe import describe_report, describe_submitted
        from pipelines.detaching import check_detachable
        from pipelines.engine import pipeline_options
        from pipelines.label import plan_runs, run_labels, submit_labels
    except ImportError as error:
        _need("label", error)
    options = pipeline_options(beam_arguments)
    if arguments.detach:
        check_detachable(options)
    if arguments.preflight:
        from pipelines.doctor.preflight import preflight

        preflight(config, options=options, say=_silent if arguments.json else _say)
    # Without options for Beam: they may hold secrets, and all parts may be there when it goes on.
    overrides = [word for override in arguments.set for word in ("--set", override)]
    command = shlex.join(["decant", "label", arguments.config, *overrides])
    runs = plan_runs(config, progress=not arguments.json, retry_dead_letters=arguments.retry_dead_letters, writes=True)
    for plan in (run.plan for run in runs if run.plan.tasks and not arguments.json):
        what = "documents" if plan.of_text else "rows"
        _say(f"{config.name}: {plan.num_missing_rows:,} of {plan.num_rows:,} {what} to label, in {len(plan.tasks):,} work units")
    if arguments.detach and any(run.plan.tasks for run in runs):
        submitted = submit_labels(runs, options=options, anyway=arguments.anyway, command=command)
        if not arguments.json:
            _say(describe_submitted(submitted))
        return {"name": config.name, **asdict(submitted)}
    reports = run_labels(
        runs,
        options=options,
        progress=not arguments.json,
        line_seconds=arguments.progress_seconds,
        anyway=arguments.anyway,
        command=command,
    )
    if not arguments.json:
        _say("\n".join(describe_report(report, cache=config.cache or "") for report in reports))
    return _of_targets(config, [asdict(report) for report in reports])


def _train(arguments: argparse.Namespace) -> dict[str, Any]:
    config = _load(arguments)
    try:
        from student_training.experiment import LiveSide, run_experiment
    except ImportError as error:
        _need("train", error)
    live = None
    if config.training is not None and config.training.targets.kind == "live" and not config.views.of_text:
        from pipelines.request import resolve_view
        from pipelines.teachers import load_teacher

        teacher = load_teacher(config.teacher)
        live = LiveSide(
            teacher=teacher.logits,
            view=resolve_view(config, evaluation=teacher.preprocessing.view),
            num_classes=teacher.spec.num_classes,
        )
    say = _silent if arguments.json or not _speaks() else _say
    return run_experiment(config, live=live, resume=not arguments.restart, say=say)


def _cache(arguments: argparse.Namespace) -> dict[str, Any]:
    return _told(run_cache_action(arguments), arguments)


def _audit(arguments: argparse.Namespace) -> dict[str, Any]:
    config = _load(arguments)
    try:
        from pipelines.audit import audit
    except ImportError as error:
        _need("label", error)
    found = audit(
        config,
        label_set=arguments.label_set,
        num_rows=arguments.rows,
        threshold=arguments.threshold,
        seed=arguments.seed,
        progress=not arguments.json,
    )
    return _told(found, arguments)


def _repair(arguments: argparse.Namespace, beam_arguments: list[str]) -> dict[str, Any]:
    check_experiment_word(arguments.config, rest=beam_arguments)
    config = _load(arguments)
    try:
        from pipelines.engine import pipeline_options
        from pipelines.repair import repair
    except ImportError as error:
        _need("label", error)
    options = pipeline_options(beam_arguments)
    found = repair(config, dry_run=arguments.dry_run, options=options, progress=not arguments.json)
    return _told(found, arguments)


def _doctor(arguments: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    try:
        from pipelines.doctor.command import run_doctor
    except ImportError as error:
        _need("label", error)
    found = run_doctor(
        words,
        overrides=arguments.set,
        workers=arguments.workers,
        num_elements=arguments.elements,
        timeout_seconds=arguments.timeout,
        progress=not arguments.json,
    )
    return _told(found, arguments)


def _demo(arguments: argparse.Namespace) -> dict[str, Any]:
    try:
        from student_training.demo import run_demo
        from student_training.text.demo import run_text_demo
    except ImportError as error:
        _need("demo", error)

    def command(words: Sequence[str]) -> dict[str, Any]:
        parsed, rest = make_parser().parse_known_args([*words, "--json"])
        result: dict[str, Any] = _run(parsed, rest)
        return result

    folder = arguments.folder or ("runs/demo_text" if arguments.text else "runs/demo")
    run = run_text_demo if arguments.text else run_demo
    return run(folder, command=command, num_seeds=arguments.seeds, say=_silent if arguments.json else _say)


def _run(arguments: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    with_rest = {"label": _label, "repair": _repair, "doctor": _doctor}
    if arguments.command in with_rest:
        return with_rest[arguments.command](arguments, rest)
    if rest:
        raise UsageError(f"unknown arguments: {' '.join(rest)}{set_hint(rest)}")
    handlers: dict[str, Callable[[argparse.Namespace], dict[str, Any]]]
    handlers = {"plan": _plan, "train": _train, "audit": _audit, "cache": _cache, "demo": _demo}
    return handlers[arguments.command](arguments)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 wrong config or usage, 130 interrupted."""
    words = sys.argv[1:] if words is None else words
    try:
        arguments, rest = make_parser().parse_known_args(words)
    except UsageError as error:
        # What was asked for can only be seen in the words.
        return _fail(argparse.Namespace(json="--json" in words, verbose=False), error, status=error.exit_code)
    # Beam, timm and the hub client log freely; what a person must know is in our own output.
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    if not arguments.verbose:
        # It logs the traceback of every error on its way to us.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    try:
        with _stdout_alone() if arguments.json else contextlib.nullcontext():
            result = _run(arguments, rest)
        if arguments.json and _speaks():
            _say(json.dumps(result, indent=2))
            sys.stdout.flush()
    except DecantError as error:
        return _fail(arguments, error, status=error.exit_code)
    except KeyboardInterrupt:
        message = "interrupted; what was committed is whole: run the same command again to go on"
        return _fail(arguments, DecantError(message), status=_EXIT_INTERRUPTED)
    except BrokenPipeError:
        _give_up_stdout()
        return 1
    except Exception as error:
        return _fail(arguments, error, status=1)
    return 1 if result.get("problems") else 0


@contextlib.contextmanager
def _stdout_alone() -> Iterator[None]:
    """Keep standard output for the JSON: what a teacher's own code, a library or a worker prints goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _fail(arguments: argparse.Namespace, error: Exception, *, status: int) -> int:
    if arguments.verbose:
        traceback.print_exception(error)
    message = str(error) if isinstance(error, DecantError) else _unforeseen(error)
    hint = getattr(arguments, "hint", None)
    if hint is not None and status != _EXIT_INTERRUPTED:
        message = f"{message}\n{hint}"
    # What only another process met would else be seen nowhere.
    who = "decant" if _speaks() else f"decant (process {os.environ['RANK']})"
    sys.stderr.write(f"{who}: {message}\n")
    if arguments.json and _speaks():
        try:
            _say(json.dumps({"error": type(error).__name__, "message": message, "status": status}, indent=2))
            sys.stdout.flush()
        except OSError:  # nobody reads it, or its disk is full: the words above have been said
            _give_up_stdout()
    return status


def _give_up_stdout() -> None:
    """Send what is left in standard output nowhere: Python would try again to write it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unforeseen(error: Exception) -> str:
    """Return one line for an error that nobody wrote a message for."""
    said = " ".join(str(error).split())
    shown = said if len(said) <= _MAX_MESSAGE else said[:_MAX_MESSAGE] + " ..."
    return f"{type(error).__name__}: {shown or 'no message'} (Decant did not foresee this; --verbose shows where it happened)"


if __name__ == "__main__":
    sys.exit(main())
