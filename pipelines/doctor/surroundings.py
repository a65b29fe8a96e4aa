"""What a newcomer's machine has: extras, the Hugging Face cache, shared memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from pipelines.doctor.findings import HERE, Finding
from pipelines.doctor.judge_machines import size_words
from pipelines.doctor.report import ProcessReport

EXTRAS = {
    "label": ("apache_beam", "torch", "torchvision", "timm", "transformers"),
    "train": ("torch", "torchvision", "timm", "transformers", "accelerate", "tensorboard"),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "demo": ("sklearn",),
}
"""What each extra of the package is for, by modules that it brings."""

_PURPOSES = {
    "label": "decant label, plan, audit and repair",
    "train": "decant train",
    "s3": "s3:// paths",
    "gcs": "gs:// paths",
    "demo": "decant demo",
}
_SMALL_SHARED_BYTES = 256 << 20
_LITTLE_HUB_BYTES = 5 << 30


def missing_modules(extra: str) -> list[str]:
    """Return the modules of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def judge_surroundings(report: ProcessReport, *, needed: frozenset[str]) -> Iterator[Finding]:
    """Yield what is installed, and what would be in the way sooner or later.

    Args:
        needed: extras that what was asked for cannot do without.
    """
    yield from _extras(needed)
    yield from _hub()
    shared = report.machine.shared_memory_bytes
    if shared is not None and shared < _SMALL_SHARED_BYTES:
        yield Finding(
            level="warning",
            topic="memory",
            message=f"/dev/shm holds {size_words(shared)}: loader processes of decant train pass batches through it",
            remedy="Containers get more by docker run --shm-size=2g; or set training.loader_workers: 0",
            places=(HERE,),
        )


def _extras(needed: frozenset[str]) -> Iterator[Finding]:
    complete = []
    for extra in EXTRAS:
        missing = missing_modules(extra)
        if not missing:
            complete.append(extra)
            continue
        yield Finding(
            level="error" if extra in needed else "ok",
            topic="packages",
            message=f"extra {extra} is not whole ({_PURPOSES[extra]}): {', '.join(missing)} missing",
            remedy=f"pip install 'decant[{extra}]'",
            places=(HERE,),
        )
    if complete:
        yield Finding(level="ok", topic="packages", message=f"extras installed: {', '.join(complete)}", places=(HERE,))


def _hub() -> Iterator[Finding]:
    if find_spec("huggingface_hub") is None:
        return
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in folder.glob("models--*"))
    offline = ", HF_HUB_OFFLINE is set: nothing is downloaded" if constants.is_offline_mode() else ""
    yield Finding(
        level="ok", topic="packages", message=f"Hugging Face cache {folder}: {len(models)} models{offline}", places=(HERE,)
    )
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if not there.is_dir() or not os.access(there, os.W_OK):
        message, remedy = f"the Hugging Face cache {folder} cannot be written", "Set HF_HOME to a folder of your own"
    elif free < _LITTLE_HUB_BYTES and not offline:
        message, remedy = (
            f"the Hugging Face cache {folder} has {size_words(free)} left",
            "Set HF_HOME to a folder on a larger disk",
        )
    else:
        return
    yield Finding(level="warning", topic="disk", message=message, remedy=remedy, places=(HERE,))
