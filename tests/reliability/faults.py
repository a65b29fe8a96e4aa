"""Thousands of faults in the files of a cache: does reading ever give other rows without an error, and is every fault mended?"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.report import Goal, Report, Table
from tests.reliability.damage import Fault, kinds_for, make_fault
from tests.reliability.layouts import LAYOUTS, Bench, count_outcomes, some_rows
from tests.reliability.specimen import NOTHING_READS, Outcome, Specimen

NUM_FAULTS = 1500
NUM_HEALED = 200
NUM_PEER_FAULTS = 1000

_METHOD = """\
A cache is made by real runs of `decant label` in this process: two timm teachers on the same pictures and a factory teacher on others
(24 pictures each in 3 units, 4 views), hidden states of two layers of the pictures, and 20 texts with a masked language model: soft
labels of masked tokens, hidden states, and the teacher's frozen head. One picture was changed on the way and one part lost and made anew
with slightly other numbers, and a tag was moved, so that older copies of files exist. One run's folder is kept. Each fault damages the
files in use in one way; then everything is read as a student reads it (`LabelSet.open` by name or tag, the check against the config, the
streams over every row of every view joined with its picture, class means, the head) and compared with what was read before, bit for bit,
and `decant cache verify` is run; where a file of the run is hit, the run is followed as `decant cache watch` does, too. *Silent*: some
row, key, picture, token, mask, hard label, view digest, class mean, head, or count of a run differs and nothing was raised. *Harmless*:
all are right. *Clear*: the error names the damaged file (or its label set's folder, or the run; for older copies the part that they name
and that is gone) and what to do. The file is drawn by kind, so that small kinds are hit as often as large ones.

*Rolled back* are names and tags put back whole as they once were, where they point at a whole label set that serves the config: readers
get that older one, verified in itself, and nothing is raised. Nothing else in the cache says which is newer. The tables have them in a
column of their own.

Mending: for some faults `decant label` is run for all experiments; where the same error comes twice, `decant repair`, as errors
of blocks, records and requests say; if it comes again, the files it names are removed; a tag that was lost is set again. It must end with every row right and nothing for
`verify` to find. (A tag that was rolled back is left out: only people move tags.)

The same labels, ids and float16 probabilities of 10 classes of 1,000, two views of 500 pictures, then lie in other layouts, written
and read as people do (`tests/benchmarks/peers`). Faults hit files there by their size. A reader that raises anything, or dies, has
detected a fault; fewer rows without an error are silent. Parquet is one file here, so that nothing can be swapped."""


@dataclass(kw_only=True)
class Tally:
    """What came of the faults, and what to look at."""

    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    mended: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_faults: int = 0
    num_detected: int = 0
    num_clear: int = 0
    num_unseen: int = 0
    """Damaged files that readers of labels look at, about which `verify` says nothing."""
    seen: list[str] = field(default_factory=list)
    """Whatever should not be: kind, file and error."""


def draw_fault(specimen: Specimen, *, rng: random.Random) -> tuple[str, Fault]:
    """Return a random fault and the kind of file it hits."""
    victims = specimen.victims_in_use
    by_kind: dict[str, list[str]] = {}
    for name in victims.files:
        by_kind.setdefault(specimen.kinds[name], []).append(name)
    while True:
        kind_of_file = rng.choice(sorted(by_kind))
        name = rng.choice(by_kind[kind_of_file])
        fault = make_fault(name, kind=rng.choice(kinds_for(name, victims)), victims=victims, rng=rng)
        if fault is not None:
            return kind_of_file, fault


def state_of(outcome: Outcome, *, fault: Fault, kind_of_file: str) -> str:
    """Return what came of a fault; what is silent and nothing but an older name or tag is "rolled back"."""
    whole_but_old = kind_of_file in {"name", "tag"} and fault.kind == "older copy"
    return "rolled back" if whole_but_old and outcome.state == "silent" else outcome.state


def inject(specimen: Specimen, *, num_faults: int, num_healed: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Do and undo faults one after the other."""
    rng = random.Random(seed)
    tally = Tally()
    every = max(num_faults // max(num_healed, 1), 1)
    for number in range(num_faults):
        kind_of_file, fault = draw_fault(specimen, rng=rng)
        outcome = specimen.judge(fault)
        tally.num_faults += 1
        state = state_of(outcome, fault=fault, kind_of_file=kind_of_file)
        tally.states[kind_of_file, state] += 1
        tally.kinds[fault.kind, state] += 1
        if outcome.error:
            tally.num_detected += 1
            tally.num_clear += outcome.clear
        is_memo = kind_of_file.endswith("memo")
        unseen = state not in {"detected", "rolled back"} and not outcome.verify_finds and kind_of_file not in NOTHING_READS
        tally.num_unseen += unseen
        if state == "silent" or not outcome.clear or unseen:
            tally.seen.append(f"{fault.kind} of {', '.join(fault.after)}: {outcome.state}: {outcome.error}")
        # Memos change what the next run does, never what is read: each of those is followed by a run.
        if (is_memo or number % every == 0) and (kind_of_file, state) != ("tag", "rolled back"):
            mended, error = specimen.heal(fault)
            tally.mended[kind_of_file, mended] += 1
            if mended in {"silent", "not healed"}:
                tally.seen.append(f"{fault.kind} of {', '.join(fault.after)}: after decant label: {mended}: {error}")
        if number % 100 == 99:
            say(f"{number + 1} of {num_faults} faults")
    return tally


def _by_file(tally: Tally) -> Table:
    states = ("detected", "harmless", "rolled back", "silent")
    names = sorted({name for name, _ in tally.states})
    rows = [
        (
            name,
            sum(tally.states[name, state] for state in states),
            *(tally.states[name, state] for state in states),
            *(tally.mended[name, how] for how in ("rerun", "repaired", "removed", "not healed", "silent")),
        )
        for name in names
    ]
    total = ("all", *(sum(row[column] for row in rows) for column in range(1, 11)))  # type: ignore[misc]
    columns = (
        "file",
        "faults",
        *states,
        "mended by a rerun",
        "... by decant repair",
        "... after removing what the error names",
        "not mended",
        "wrong rows",
    )
    return Table(title="Faults in a cache, by the file that is hit", columns=columns, rows=(*rows, total))


def _by_kind(counts: Counter[tuple[str, str]], *, title: str) -> Table:
    states = ("detected", "harmless", "rolled back", "silent") if any(s == "rolled back" for _, s in counts) else None
    states = states or ("detected", "harmless", "silent")
    rows = [(kind, *(counts[kind, state] for state in states)) for kind in sorted({kind for kind, _ in counts})]
    return Table(title=title, columns=("fault", *states), rows=tuple(rows))


def run(*, quick: bool, folder: Path, say: Callable[[str], None]) -> Report:
    """Inject faults into a cache and into other layouts of the same labels."""
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    specimen = Specimen.make(folder / "specimen")
    say("the cache is made")
    num_faults, num_healed, num_peer_faults = (40, 6, 15) if quick else (NUM_FAULTS, NUM_HEALED, NUM_PEER_FAULTS)
    tally = inject(specimen, num_faults=num_faults, num_healed=num_healed, seed=1, say=say)
    for line in tally.seen:
        say(line)
    rows = some_rows(num_samples=60 if quick else 500)
    layouts: list[tuple[str, int, int, int, int]] = []
    kinds: dict[str, Counter[tuple[str, str]]] = {}
    for number, name in enumerate(LAYOUTS):
        bench = Bench.make(name, folder=folder / f"layout{number}", rows=rows)
        kinds[name] = count_outcomes(bench, num_faults=num_peer_faults)
        by_state = {
            state: sum(n for (_, s), n in kinds[name].items() if s == state) for state in ("detected", "harmless", "silent")
        }
        layouts.append((name, kinds[name].total(), by_state["detected"], by_state["harmless"], by_state["silent"]))
        say(f"{name}: {by_state}")
    all_kinds = sorted({kind for counts in kinds.values() for kind, _ in counts})
    silent_rows = [(kind, *(kinds[name][kind, "silent"] for name in LAYOUTS)) for kind in all_kinds]
    rolled_back = sum(count for (_, state), count in tally.states.items() if state == "rolled back")
    not_mended = sum(count for (_, how), count in tally.mended.items() if how in {"silent", "not healed"})
    goals = (
        Goal(what="faults tried", measured=tally.num_faults, limit=num_faults, at_most=False),
        Goal(
            what=f"silent faults, {rolled_back} names and tags aside that were put back whole and name an older label set",
            measured=sum(n for (_, s), n in tally.states.items() if s == "silent"),
            limit=0,
        ),
        Goal(what="silent faults, Decant beside other layouts", measured=layouts[0][4], limit=0),
        Goal(what="errors that name neither file nor remedy", measured=tally.num_detected - tally.num_clear, limit=0),
        Goal(what="harmless damage that `verify` does not find, memos and runs aside", measured=tally.num_unseen, limit=0),
        Goal(what="faults that `decant label` and its errors' advice do not mend", measured=not_mended, limit=0),
    )
    return Report(
        name="faults",
        title="Faults: damage to files",
        method=_METHOD,
        tables=(
            _by_file(tally),
            _by_kind(tally.kinds, title="The same, by the kind of damage"),
            Table(
                title="Faults in the same labels as other layouts have them",
                columns=("layout", "faults", "detected", "harmless", "silent"),
                rows=tuple(layouts),
            ),
            Table(title="Silent faults there, by the kind of damage", columns=("fault", *LAYOUTS), rows=tuple(silent_rows)),
        ),
        goals=goals,
        quick=quick,
    )
