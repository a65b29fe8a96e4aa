"""SIGKILL at random moments of real runs, then the same command again."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from storage.cache import Cache
from storage.errors import DecantError
from storage.label_set import LabelSet
from storage.parts import PartRecord
from tests.benchmarks.report import Goal, Report, Table
from tests.pipelines import support
from tests.reliability.runs import BATCHES_PER_PART, NUM_BATCHES, NUM_PARTS, Run, workers_of

NUM_KILLS = 72
VICTIMS = (*(("the run", 1),) * 4, ("the run", 2), ("a worker", 2))
"""Whom to kill, and how many workers there are. One worker works inside the run; two take far longer to start."""

_METHOD = f"""\
`decant label` on {NUM_PARTS} units of work, each two batches of a teacher that sleeps 0.05 s, in processes of their own (forked from
one that has imported everything; the two workers of some runs are ordinary processes). At a random moment
(most after a random number of batches and up to 0.3 s, one in six within the first seconds, while the source is indexed and the
teacher loaded, some of them after the last batch, while the label set is committed) the process of the run or one of its two workers
gets SIGKILL. What a reader would trust is then checked: every part record is whole and its tar has the committed sha256, and every
label set or name that is there opens. Then the same command (with one worker) runs to its end, undisturbed, and every file that readers may see (parts,
records, tables, class means, manifest, names) is compared byte by byte with a run that nobody disturbed. The teacher writes down
every batch: what is beyond the batches of one run was computed twice."""


class HalfDoneError(Exception):
    """Something that readers would trust is not whole."""


def check_nothing_is_half_done(cache: Path) -> int:
    """Return the number of parts that count.

    Raises:
        HalfDoneError: a record, tar, label set or name is not whole.
    """
    records = sorted((cache / "requests").glob("*/*.v*.json"))
    try:
        for file in records:
            record = PartRecord.from_bytes(file.read_bytes(), origin=str(file))
            if hashlib.sha256((file.parent / record.tar_name).read_bytes()).hexdigest() != record.tar_sha256:
                raise HalfDoneError(f"{file}: its tar is not what it says")
        opened = Cache.at(str(cache))
        for name in [*opened.label_set_ids(), *opened.names()]:
            LabelSet.open(opened, name_or_id=name).class_means()
    except (DecantError, OSError) as error:
        raise HalfDoneError(str(error)) from error
    return len(records)


def kill_once(run: Run, *, victim: str, workers: int, rng: random.Random, startup_seconds: float) -> bool:
    """Start a run and kill it, or one of its workers, at a random moment; return False where it had ended before."""
    process = run.start(workers=workers)
    try:
        if rng.random() < 1 / 6:
            time.sleep(rng.random() * startup_seconds)
        else:
            after = rng.randint(0, NUM_BATCHES)
            while run.num_batches < after and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.3)
        targets = [process] if victim == "the run" else workers_of(process) or [process]
        if process.poll() is not None:
            return False
        rng.choice(targets).kill()
        return True
    except psutil.NoSuchProcess:
        return False
    finally:
        process.communicate(timeout=120)


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Kill runs and let them go on."""
    pictures = support.write_folder(folder / "pictures")
    undisturbed = Run(folder / "undisturbed", pictures=pictures)
    started = time.monotonic()
    undisturbed.finish()
    startup_seconds = max(time.monotonic() - started - 0.05 * NUM_BATCHES, 1.0)
    expected = support.snapshot(undisturbed.cache)
    assert undisturbed.num_batches == NUM_BATCHES
    rng = random.Random(1)
    num_kills = 3 if quick else NUM_KILLS
    rows: dict[tuple[str, int], list[int]] = {key: [0] * 6 for key in VICTIMS}
    number = 0
    while sum(row[0] for row in rows.values()) < num_kills:
        victim, workers = VICTIMS[number % len(VICTIMS)]
        trial = Run(folder / f"kill{number}", pictures=pictures)
        number += 1
        if not kill_once(trial, victim=victim, workers=workers, rng=rng, startup_seconds=startup_seconds):
            continue
        row = rows[victim, workers]
        row[0] += 1
        try:
            num_records = check_nothing_is_half_done(Path(trial.cache))
        except HalfDoneError as error:
            say(f"{victim}, {workers} workers: {error}")
            row[1] += 1
            continue
        figures = trial.finish()
        row[2] += support.snapshot(trial.cache) != expected
        again = math.ceil((trial.num_batches - NUM_BATCHES) / BATCHES_PER_PART)
        row[3] = max(row[3], again)
        row[4] += again > workers or figures["num_computed_rows"] != 96 - 8 * num_records
        row[5] += num_records
        say(f"{sum(row[0] for row in rows.values())} of {num_kills}: {victim}, {workers} workers, {num_records} parts stood")
    kills = sum(row[0] for row in rows.values())
    table = Table(
        title="Runs that were killed, and went on",
        columns=(
            "killed",
            "workers",
            "kills",
            "half-done files",
            "other bytes in the end",
            "most units computed twice",
            "more than were in flight",
            "parts that stood, on average",
        ),
        rows=tuple((victim, workers, *row[:5], row[5] / max(row[0], 1)) for (victim, workers), row in rows.items()),
    )
    goals = (
        Goal(what="kills", measured=kills, limit=num_kills, at_most=False),
        Goal(what="kills that left something half done", measured=sum(row[1] for row in rows.values()), limit=0),
        Goal(what="runs that ended with other bytes", measured=sum(row[2] for row in rows.values()), limit=0),
        Goal(what="runs that computed more twice than was in flight", measured=sum(row[4] for row in rows.values()), limit=0),
    )
    return Report(name="kills", title="Kills: processes that die", method=_METHOD, tables=(table,), goals=goals, quick=quick)
