"""Files of a run's tasks in the cache's store: the job graph names their folder, and does not grow with them.

Every run has an order of its own. So runs over one cache that begin together are rarely at the same unit: each finds parts that
the other committed, and they share the work without knowing of each other.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipelines.label_task import LabelTask
from storage.filesystem import Store
from storage.sources.base import SourceUnit
from storage.specs import PartSpec

UNITS_PER_FILE = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFiles:
    """Where the tasks of a run lie.

    Attributes:
        folder: of the run, inside the cache.
        num_files: files of `UNITS_PER_FILE` work units, the last one of fewer.
    """

    folder: str
    num_files: int

    def names(self) -> Iterator[str]:
        """Yield the names of the files, in the run's own order."""
        numbers = random.Random(self.folder).sample(range(self.num_files), k=self.num_files)
        return (_file_name(self.folder, number) for number in numbers)


def _file_name(folder: str, number: int) -> str:
    return f"{folder}/tasks/{number:06d}.json"


def write_tasks(store: Store, *, folder: str, units: Iterable[tuple[LabelTask, ...]]) -> TaskFiles:
    """Write work units while they are made, holding those of one file, which come in the run's own order.

    Raises:
        CacheError: the store cannot be written.
    """
    remaining, order = iter(units), random.Random(folder)
    num_files = 0
    # As text at once: objects of a whole file at a time would keep the garbage collector busy.
    while in_file := [json.dumps([task_to_json(task) for task in unit]) for unit in islice(remaining, UNITS_PER_FILE)]:
        order.shuffle(in_file)
        store.write(_file_name(folder, num_files), f"[{','.join(in_file)}]".encode())
        num_files += 1
    return TaskFiles(folder=folder, num_files=num_files)


def read_tasks(store: Store, *, name: str) -> list[tuple[LabelTask, ...]]:
    """Return the work units of one file."""
    return [tuple(task_from_json(task) for task in unit) for unit in json.loads(store.read(name))]


def task_to_json(task: LabelTask) -> dict[str, Any]:
    """Return the JSON form of a task, as it lies in a run's task files."""
    unit, part = task.unit, task.part
    return {
        "unit": {"name": unit.name, "locator": unit.locator, "stat_token": unit.stat_token},
        "part": {
            "request": part.request,
            "unit_digest": part.unit_digest,
            "first_view": part.first_view,
            "num_views": part.num_views,
        },
        "num_samples": task.num_samples,
        "replaces": task.replaces,
        "num_dead_rows": task.num_dead_rows,
    }


def task_from_json(data: dict[str, Any]) -> LabelTask:
    """Return the task of its JSON form."""
    return LabelTask(**{**data, "unit": SourceUnit(**data["unit"]), "part": PartSpec.model_validate(data["part"])})
