"""SIGKILL at random moments of real runs, then the same command again."""

from __future__ import annotations

import hashlib
import math
import random
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from storage.cache import Cache
from storage.errors import DecantError
from storage.label_set import LabelSet
from storage.parts import PartRecord
from tests.benchmarks.report import Goal, Report, Table
from tests.pipelines import support
from tests.reliability.runs import BATCHES_PER_PART, NUM_BATCHES, NUM_PARTS, Forked, Run, workers_of

NUM_KILLS = 72
VICTIMS = (*(("the run", 1),) * 3, ("the run", 2), *(("a worker", 2),) * 2)
"""Whom to kill, and how many workers there are. One worker works inside the run; two take far longer to start."""
END_SECONDS = 30.0
"""Most that a run may take to end when a worker of it was killed."""

_METHOD = f"""\
`decant label` on {NUM_PARTS} units of work, each two batches of a teacher that sleeps 0.05 s, in processes of their own (forked from
one that has imported everything; the two workers of some runs are ordinary processes). At a random moment
(most after a random number of batches and up to 0.3 s, one in six within the first seconds, while the source is indexed and the
teacher loaded, some of them after the last batch, while the label set is committed) the process of the run or one of its two workers
gets SIGKILL. A run whose worker was killed must end by itself, with an error that says so and how to go on (or well, where all work was
done); how long that took is measured from the kill to the end of its process, and one that still runs after two minutes counts as
hanging. What a reader would trust is then checked: every part record is whole and its tar has the committed sha256, and every label set
or name that is there opens. Then the same command (with one worker) runs to its end, undisturbed, and every file that readers may see
(parts, records, tables, class means, manifest, names) is compared byte by byte with a run that nobody disturbed. The teacher writes down
every batch: what is beyond the batches of one run was computed twice."""

_SAID = re.compile(r"a worker process died .* run the same command again to go on", re.DOTALL)


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


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A kill that hit.

    Attributes:
        of_worker: whether a worker was killed; there may have been none yet.
        end_seconds: from the kill to the end of the run; None: it had to be ended.
        ended_clearly: the run was killed itself, ended well, or said that its worker died and how to go on.
    """

    of_worker: bool
    end_seconds: float | None
    ended_clearly: bool


def kill_once(run: Run, *, victim: str, workers: int, rng: random.Random, startup_seconds: float) -> Kill | None:
    """Start a run and kill it, or one of its workers, at a random moment; return None where it had ended before."""
    process = run.start(workers=workers)
    killed: Forked | psutil.Process | None = None
    killed_at = 0.0
    try:
        if rng.random() < 1 / 6:
            time.sleep(rng.random() * startup_seconds)
        else:
            after = rng.randint(0, NUM_BATCHES)
            while run.num_batches < after and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.3)
        targets = [process] if victim == "the run" else workers_of(process) or [process]
        if process.poll() is None:
            chosen = rng.choice(targets)
            killed_at = time.monotonic()
            chosen.kill()
            killed = chosen
    except psutil.NoSuchProcess:
        pass
    try:
        _, errors = process.communicate(timeout=120)
    except TimeoutError:
        return Kill(of_worker=killed is not process, end_seconds=None, ended_clearly=False)
    if killed is None:
        return None
    of_worker = killed is not process
    return Kill(
        of_worker=of_worker,
        end_seconds=time.monotonic() - killed_at,
        ended_clearly=not of_worker or process.returncode == 0 or bool(_SAID.search(errors)),
    )


@dataclass(kw_only=True)
class Row:
    """What came of the kills of one kind.

    Attributes:
        end_seconds: of each run, from the kill to its end; infinite: it had to be ended.
    """

    kills: int = 0
    half_done: int = 0
    other_bytes: int = 0
    most_again: int = 0
    too_much_again: int = 0
    parts: int = 0
    unclear: int = 0
    end_seconds: list[float] = field(default_factory=list)

    def add(self, kill: Kill) -> None:
        """Count a kill."""
        self.kills += 1
        self.unclear += not kill.ended_clearly
        self.end_seconds.append(math.inf if kill.end_seconds is None else kill.end_seconds)


def _go_on(trial: Run, *, row: Row, workers: int, expected: dict[str, bytes]) -> int:
    """Look at what a kill left, run the command again to its end, and return how many parts stood.

    Raises:
        HalfDoneError: the kill left something that is not whole.
    """
    num_records = check_nothing_is_half_done(Path(trial.cache))
    figures = trial.finish()
    row.other_bytes += support.snapshot(trial.cache) != expected
    again = math.ceil((trial.num_batches - NUM_BATCHES) / BATCHES_PER_PART)
    row.most_again = max(row.most_again, again)
    row.too_much_again += again > workers or figures["num_computed_rows"] != 96 - 8 * num_records
    row.parts += num_records
    return num_records


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
    num_kills = 6 if quick else NUM_KILLS
    rows = {key: Row() for key in dict.fromkeys(VICTIMS)}
    number = 0
    while (num_done := sum(row.kills for row in rows.values())) < num_kills:
        victim, workers = VICTIMS[number % len(VICTIMS)]
        trial = Run(folder / f"kill{number}", pictures=pictures)
        number += 1
        kill = kill_once(trial, victim=victim, workers=workers, rng=rng, startup_seconds=startup_seconds)
        if kill is None:
            continue
        victim = "a worker" if kill.of_worker else "the run"
        row = rows[victim, workers]
        row.add(kill)
        try:
            num_records = _go_on(trial, row=row, workers=workers, expected=expected)
        except HalfDoneError as error:
            say(f"{victim}, {workers} workers: {error}")
            row.half_done += 1
            continue
        say(
            f"{num_done + 1} of {num_kills}: {victim}, {workers} workers, {num_records} parts stood, the run ended "
            f"{row.end_seconds[-1]:.2f} s after the kill"
        )
    return report_of(rows, num_kills=num_kills, quick=quick)


def report_of(rows: dict[tuple[str, int], Row], *, num_kills: int, quick: bool) -> Report:
    """Return the report of what came of the kills."""
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
            "kill to end, median s",
            "kill to end, longest s",
        ),
        rows=tuple(
            (
                victim,
                workers,
                row.kills,
                row.half_done,
                row.other_bytes,
                row.most_again,
                row.too_much_again,
                row.parts / max(row.kills, 1),
                statistics.median(row.end_seconds) if row.end_seconds else None,
                max(row.end_seconds, default=None),
            )
            for (victim, workers), row in rows.items()
        ),
    )
    every = rows.values()
    of_workers = [row for (victim, _), row in rows.items() if victim == "a worker"]
    seconds = [one for row in of_workers for one in row.end_seconds]
    goals = (
        Goal(what="kills", measured=sum(row.kills for row in every), limit=num_kills, at_most=False),
        Goal(what="kills that left something half done", measured=sum(row.half_done for row in every), limit=0),
        Goal(what="runs that ended with other bytes", measured=sum(row.other_bytes for row in every), limit=0),
        Goal(what="runs that computed more twice than was in flight", measured=sum(row.too_much_again for row in every), limit=0),
        Goal(
            what=f"longest from the kill of a worker to the end of the run, {len(seconds)} kills",
            measured=max(seconds, default=math.nan),
            limit=END_SECONDS,
            unit="s",
        ),
        Goal(
            what="runs that hung, or did not say that a worker died and how to go on",
            measured=sum(row.unclear for row in of_workers),
            limit=0,
        ),
    )
    return Report(name="kills", title="Kills: processes that die", method=_METHOD, tables=(table,), goals=goals, quick=quick)
