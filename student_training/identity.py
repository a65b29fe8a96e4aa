"""What a run is: everything its weights depend on. A checkpoint and a finished run belong to one identity."""

from __future__ import annotations

from typing import Any

from storage.errors import MismatchError
from storage.hashing import fingerprint
from storage.streams.label_tars import ReadsLabelSets
from student_training.job import Job

_HOW_TO_RUN = {
    "output",
    "device",
    "loader_workers",
    "torch_threads",
    "log_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "evaluation",
    "source",
    "tokenizer",
}


def describe_run(job: Job) -> dict[str, Any]:
    """Return the identity of a run as JSON data. Where it runs, where files lie and how often it reports are not part of it."""
    settings = job.training.model_dump(mode="json", exclude=_HOW_TO_RUN)
    # The rows themselves say which labels they are; a label set may be renamed.
    for name in ("label_set", "label_sets"):
        settings["targets"].pop(name, None)
    # Pictures had no such settings once; runs of then go on as what they are.
    if settings["terms"] is None:
        del settings["terms"]
    if not settings["group_by_length"]:
        del settings["group_by_length"]
    if settings["student"]["kind"] == "timm":
        del settings["student"]["kind"]
    identity: dict[str, Any] = {"training": settings, **job.facts(), "stream": job.stream.identity()}
    # Beside the fingerprint: checkpoints of earlier releases do not have it, and go on.
    tars = {"label_tars": job.stream.label_tars()} if isinstance(job.stream, ReadsLabelSets) else {}
    return {**identity, **tars, "fingerprint": fingerprint(identity)}


def require_same_run(found: dict[str, Any], *, asked: dict[str, Any], where: str) -> None:
    """Check that what lies in a run's folder is of the run that is asked for.

    Args:
        found: identity that was stored.
        asked: identity of this run.
        where: the folder, for the message.

    Raises:
        MismatchError: they differ; the message names the fields and both values.
    """
    if found.get("fingerprint") == asked["fingerprint"]:
        _require_same_tars(found, asked=asked, where=where)
        return
    old, new = _flatten(found), _flatten(asked)
    lines = []
    for name in sorted((old.keys() | new.keys()) - {"fingerprint"}):
        if old.get(name) == new.get(name) or name.startswith("label_tars"):
            continue
        if name == "stream":
            lines.append("stream: other samples, labels or order of rows (source, label set, views or sample_fraction changed)")
        else:
            lines.append(f"{name}: {old.get(name, 'not there')!r} there, {new.get(name, 'not there')!r} asked for")
    raise MismatchError(
        f"{where} holds another run, which cannot be continued as this one:\n  "
        + "\n  ".join(lines)
        + "\nGive another training.output, put these values back, or start over with --restart, which clears that run"
    )


def _require_same_tars(found: dict[str, Any], *, asked: dict[str, Any], where: str) -> None:
    """Check that label sets are read from the tars of then: others may have other blocks, and so another order of rows."""
    then, now = found.get("label_tars", {}), asked.get("label_tars", {})
    anew = [
        f"label set {now[label_set]['name']!r} ({label_set}): its tars have digest {then[label_set]['tars'][:16]} there, "
        f"{now[label_set]['tars'][:16]} now"
        for label_set in sorted(then.keys() & now.keys())
        if then[label_set]["tars"] != now[label_set]["tars"]
    ]
    if anew:
        raise MismatchError(
            f"{where} holds a run on labels of which parts were made anew since (decant label --retry-dead-letters, or decant "
            "repair):\n  "
            + "\n  ".join(anew)
            + "\nRows lie in other blocks now and come in another order, so that it cannot go on exactly. Give another "
            "training.output to train on the labels as they are now, or start over with --restart, which clears that run"
        )


def _flatten(value: Any, *, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    parts = (_flatten(item, name=f"{name}.{key}" if name else key) for key, item in value.items())
    return {key: item for part in parts for key, item in part.items()}
