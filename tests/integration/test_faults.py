"""Short runs of `tests.reliability`: damage, kills, writers side by side, broken inputs; and memos that lie."""

from __future__ import annotations

import json
import logging
import os
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import pytest

from pipelines.engine import pipeline_options
from pipelines.label import plan_run, run_label
from storage.cache import NamedLabelSet
from storage.errors import MismatchError, SourceError
from storage.hashing import unseal
from storage.sources import open_source
from storage.sources.memo import SourceMemo
from tests.pipelines import support
from tests.reliability import kills, memory, scale_steps
from tests.reliability.concurrency import run_round, visible_files
from tests.reliability.damage import BYTES, Fault, kinds_for, make_fault
from tests.reliability.faults import inject, state_of
from tests.reliability.fuzz import fuzz_all
from tests.reliability.fuzz_target import Fuzzer, Target
from tests.reliability.layouts import Bench, count_outcomes, some_rows
from tests.reliability.mutation import mutated
from tests.reliability.reading import Reading
from tests.reliability.resident import ResidentMemory
from tests.reliability.runs import NUM_BATCHES, Run
from tests.reliability.specimen import Specimen, file_kind

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def specimen(tmp_path_factory):
    level = logging.getLogger("apache_beam").level
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    yield Specimen.make(tmp_path_factory.mktemp("specimen"))
    logging.getLogger("apache_beam").setLevel(level)


def test_no_fault_is_silent_and_each_is_mended(specimen):
    tally = inject(specimen, num_faults=30, num_healed=4, seed=int(os.environ.get("DECANT_TEST_SEED", "0")), say=logging.info)
    assert tally.seen == []
    assert tally.num_detected == tally.num_clear > 2
    assert sum(tally.mended.values()) >= 4
    assert {"silent", "not healed"}.isdisjoint(how for _, how in tally.mended)
    assert {name: file.read_bytes() for name, file in ((n, specimen.cache / n) for n in specimen.pristine)} == specimen.pristine


def test_every_kind_of_file_and_of_damage_can_be_drawn(specimen):
    files = specimen.victims_in_use.files
    kinds = {specimen.kinds[name] for name in files}
    assert kinds == {
        "tar, labels of pictures",
        "tar, vectors of pictures",
        "tar, labels of texts",
        "tar, vectors of texts",
        "head",
        "part record",
        "spec.json",
        "manifest",
        "parts table",
        "class means",
        "name",
        "tag",
        "source memo",
        "teacher memo",
        "run.json",
        "parts of a run",
        "notes of a run",
    }
    rng = random.Random(0)
    drawn = set()
    for name in files:
        for kind in kinds_for(name, specimen.victims_in_use):
            fault = make_fault(name, kind=kind, victims=specimen.victims_in_use, rng=rng)
            if fault is not None:
                assert any(data != files[touched] for touched, data in fault.after.items())
                drawn.add(kind)
    assert drawn >= {
        *BYTES,
        "deletion",
        "swap",
        "older copy",
        "tar header",
        "duplicated member",
        "block header, checksum re-made",
    }


def test_a_wrong_row_would_be_seen(specimen):
    # What damage never does: the name is signed anew for an older label set of the same teacher, in which one picture is another.
    [copy] = specimen.older["names/third.json"]
    older = NamedLabelSet(label_set=json.loads(unseal(copy))["label_set"], is_tag=False).to_bytes(name="third")
    assert specimen.judge(Fault(kind="forged", after={"names/third.json": older})).state == "silent"


@pytest.mark.parametrize("kind", ["tar, vectors of pictures", "tar, labels of texts", "tar, vectors of texts", "head"])
def test_damage_to_texts_vectors_and_heads_is_found(specimen, kind):
    name = next(name for name in specimen.victims_in_use.files if specimen.kinds[name] == kind)
    data = bytearray(specimen.pristine[name])
    # Of a tar the first block of rows: headers of members are read by nobody.
    data[len(data) // 2 if kind == "head" else data.index(b"DECANT", data.index(b"DECANT") + 1) + 100] ^= 1
    fault = Fault(kind="bit flip", after={name: bytes(data)})
    outcome = specimen.judge(fault)
    assert (outcome.state, outcome.clear, outcome.verify_finds) == ("detected", True, True)
    assert specimen.heal(fault)[0] in {"rerun", "repaired"}


def test_damage_to_what_is_seen_of_a_run_is_found_and_hurts_no_labels(specimen):
    for name in (f"runs/{specimen.run}/run.json", f"runs/{specimen.run}/parts.parquet"):
        data = specimen.pristine[name]
        for after in (None, data[:-1], b"", bytes([data[0] ^ 1]) + data[1:]):
            outcome = specimen.judge(Fault(kind="damage", after={name: after}))
            assert (outcome.state, outcome.clear) == ("detected", True), outcome.error
            assert not outcome.verify_finds


def test_a_tag_that_was_put_back_gives_the_older_label_set_and_is_counted_apart(specimen):
    [copy] = specimen.older["names/best.json"]
    fault = Fault(kind="older copy", after={"names/best.json": copy})
    outcome = specimen.judge(fault)
    assert (outcome.state, outcome.verify_finds) == ("silent", False)
    assert state_of(outcome, fault=fault, kind_of_file="tag") == "rolled back"
    assert state_of(outcome, fault=replace(fault, kind="swap"), kind_of_file="tag") == "silent"
    assert state_of(outcome, fault=fault, kind_of_file="manifest") == "silent"


def test_names_that_were_mixed_up_are_refused(specimen):
    first, second = (specimen.pristine[f"names/{name}.json"] for name in ("first", "second"))
    outcome = specimen.judge(Fault(kind="swap", after={"names/first.json": second, "names/second.json": first}))
    assert outcome.state == "detected"
    assert "names/first.json: not a name this release can read" in outcome.error
    assert outcome.clear
    assert outcome.verify_finds


def test_an_older_manifest_whose_part_was_made_anew_is_refused(specimen):
    [(name, copies)] = [(name, copies) for name, copies in specimen.older.items() if file_kind(name) == "manifest"]
    outcome = specimen.judge(Fault(kind="older copy", after={name: copies[-1]}))
    assert (outcome.state, outcome.clear, outcome.verify_finds) == ("detected", True, True)
    assert "is missing; run decant repair CONFIG" in outcome.error


def test_an_older_manifest_with_all_it_names_is_what_it_was_and_verify_tells(specimen):
    # The limit that docs/reliability.md states: a whole earlier state reads as it did then.
    [(name, copies)] = [(name, copies) for name, copies in specimen.older.items() if file_kind(name) == "manifest"]
    [(tar, data)] = specimen.lost.items()
    outcome = specimen.judge(Fault(kind="older copy", after={name: copies[-1], tar: data}))
    assert (outcome.state, outcome.verify_finds) == ("silent", True)


def test_other_layouts_are_judged_by_the_same_faults(tmp_path):
    rows = some_rows(num_samples=40)
    found = {}
    for name in ("Decant", "TinyViT record, seek and read"):
        counts = count_outcomes(Bench.make(name, folder=tmp_path / name[:6], rows=rows), num_faults=15)
        assert counts.total() == 15
        found[name] = sum(count for (_, state), count in counts.items() if state == "silent")
    assert found["Decant"] == 0
    assert found["TinyViT record, seek and read"] > 2


def rewritten(path, change):
    """Write a source memo's entries anew, as its own writer would."""
    memo = SourceMemo(str(path))
    entries = {entry.name: entry for entry in memo.entries()}
    memo.save(change(entries))


def test_a_source_memo_that_takes_one_unit_for_another_gives_an_error_not_labels(specimen):
    config = specimen.configs["first"]
    tokens = {unit.stat_token for unit in open_source(config.source).units()}
    [path] = [
        path
        for path in (specimen.cache / "sources").iterdir()
        if tokens & {entry.stat_token for entry in SourceMemo(str(path)).entries()}
    ]

    def exchange(entries):
        one, two, *others = entries.values()
        return [replace(one, digest=two.digest), replace(two, digest=one.digest), *others]

    try:
        rewritten(path, exchange)
        specimen.label(config)
        with pytest.raises(MismatchError, match="does not hold the samples that were labelled"):
            Reading.of(config)
    finally:
        specimen.restore()
    assert Reading.of(config) == specimen.truth["first"]


def test_a_memo_of_a_unit_that_is_not_labelled_is_proven_by_the_worker(tmp_path):
    pictures = support.write_folder(tmp_path / "pictures", per_class=2)
    data = support.experiment(cache=tmp_path / "cache", source=support.folder_source(pictures), teacher=support.colour_teacher())
    run = plan_run(support.config_of(data), progress=False)
    [path] = (tmp_path / "cache" / "sources").iterdir()
    rewritten(path, lambda entries: [replace(entry, digest="ab" * 32) for entry in entries.values()])
    assert len(run.plan.tasks) == 1
    with pytest.raises(SourceError, match="changed since it was indexed"):
        run_label(plan_run(support.config_of(data), progress=False), options=pipeline_options([]), progress=False)
    assert not list((tmp_path / "cache").glob("requests/*/*.tar"))


def test_a_picture_that_changes_under_the_same_size_and_time_is_read_again(tmp_path):
    pictures = support.write_folder(tmp_path / "pictures", per_class=2)
    data = support.experiment(cache=tmp_path / "cache", source=support.folder_source(pictures), teacher=support.colour_teacher())
    config = support.config_of(data)
    run_label(plan_run(config, progress=False), options=pipeline_options([]), progress=False)
    assert plan_run(config, progress=False).plan.tasks.num_rows == 0
    picture = pictures / "red" / "000.png"
    before, whole = picture.stat(), picture.read_bytes()
    with picture.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([whole[-1] ^ 1]))
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = picture.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert len(plan_run(config, progress=False).plan.tasks) == 1


def test_a_forged_memo_of_a_changed_picture_is_believed_until_it_is_removed(tmp_path):
    # Why memos are signed by their content's hash and not trusted further: this is what a lie that is whole can do.
    pictures = support.write_folder(tmp_path / "pictures", per_class=2)
    data = support.experiment(cache=tmp_path / "cache", source=support.folder_source(pictures), teacher=support.colour_teacher())
    config = support.config_of(data)
    run_label(plan_run(config, progress=False), options=pipeline_options([]), progress=False)
    (pictures / "red" / "000.png").write_bytes(support.picture(2, 77))
    [path] = (tmp_path / "cache" / "sources").iterdir()
    tokens = {unit.name: unit.stat_token for unit in open_source(config.source).units()}
    rewritten(path, lambda entries: [replace(entry, stat_token=tokens[entry.name]) for entry in entries.values()])
    assert plan_run(config, progress=False).plan.tasks.num_rows == 0
    path.unlink()
    assert len(plan_run(config, progress=False).plan.tasks) == 1


def test_a_killed_run_and_two_writers_end_with_the_bytes_of_one_run(tmp_path):
    pictures = support.write_folder(tmp_path / "pictures")
    alone = Run(tmp_path / "alone", pictures=pictures, seconds_per_batch=0.02)
    alone.finish()
    assert alone.num_batches == NUM_BATCHES
    expected = visible_files(alone.cache)
    killed = Run(tmp_path / "killed", pictures=pictures, seconds_per_batch=0.02)
    kills.kill_once(killed, victim="the run", workers=1, rng=random.Random(3), startup_seconds=1.0)
    kills.check_nothing_is_half_done(Path(killed.cache))
    killed.finish()
    assert visible_files(killed.cache) == expected
    assert killed.num_batches <= NUM_BATCHES + 2
    both = Run(tmp_path / "both", pictures=pictures, seconds_per_batch=0.02)
    errors, differing, wrong_looks, looks, work = run_round(both, writers=2, expected=expected, say=logging.info)
    assert (errors, differing, wrong_looks) == (0, 0, 0)
    assert looks > 0
    assert work >= 1


def test_half_done_files_would_be_seen(tmp_path):
    pictures = support.write_folder(tmp_path / "pictures", per_class=2)
    run = Run(tmp_path / "run", pictures=pictures, seconds_per_batch=0)
    run.finish()
    tar = next((Path(run.cache) / "requests").rglob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(kills.HalfDoneError, match=r"its tar is not what it says"):
        kills.check_nothing_is_half_done(Path(run.cache))


# As in the trial itself: numpy may warn of a number that is none before it is refused.
@pytest.mark.filterwarnings("default::RuntimeWarning")
def test_broken_inputs_give_declared_errors_in_little_memory(tmp_path):
    found = fuzz_all(str(tmp_path), num_inputs=1500, seed=random.randrange(2**32))
    assert [failure for target in found.values() for failure in target.failures] == []
    assert sum(target.num_inputs for target in found.values()) >= 1500
    assert sum(target.num_accepted for target in found.values()) > 20
    assert sum(target.num_kept for target in found.values()) > 20
    assert all(len(target.steps) >= target.num_valid_steps > 0 for target in found.values())
    assert max(target.most_python_bytes for target in found.values()) < 16 << 20
    assert max(target.most_resident_bytes for target in found.values()) < 64 << 20


def guarded(data):
    """A reader that fails behind six checks, more than are broken in one go."""
    if data[0:1] != b"\x80":
        return
    if data[1:2] != b"\xff":
        return
    if data[2:3] != b"\x7f":
        return
    if data[3:4] != b"\x01":
        return
    if data[4:5] != b"\x80":
        return
    if data[5:6] != b"\xff":
        return
    raise AssertionError("found")


def test_guidance_finds_what_blind_changes_do_not():
    target = Target(name="guarded", seeds=(bytes(6),), change=mutated, prepare=lambda made: partial(guarded, made), weight=1)
    here = Path(__file__).parent
    blind = Fuzzer(target, every_guided=0).fuzz(num_inputs=20_000, rng=random.Random(0))
    assert (blind.num_failures, blind.num_kept) == (0, 0)
    guided = Fuzzer(target, folders=(here,), every_guided=2).fuzz(num_inputs=20_000, rng=random.Random(0))
    assert guided.num_failures > 0
    assert guided.failures[0].endswith("AssertionError: found\n")
    assert guided.num_kept >= 6


def test_resident_memory_shows_what_arrow_takes():
    resident = ResidentMemory()
    try:
        before = resident.start()
        # 96 MB of numbers that Python knows nothing of.
        pc.sum(pc.random(12_000_000, initializer=0)).as_py()
        assert resident.most() - before > 80 << 20
        before = resident.start()
        assert resident.most() - before < 16 << 20
    finally:
        resident.close()


def test_a_run_that_ends_late_or_without_a_word_is_shown():
    rows = {("the run", 1): kills.Row(), ("a worker", 2): kills.Row()}
    rows["the run", 1].add(kills.Kill(of_worker=False, end_seconds=0.1, ended_clearly=True))
    rows["a worker", 2].add(kills.Kill(of_worker=True, end_seconds=4.5, ended_clearly=True))
    goals = {goal.what: goal for goal in kills.report_of(rows, num_kills=2, quick=True).goals}
    assert all(goal.passed for goal in goals.values())
    assert goals["longest from the kill of a worker to the end of the run, 1 kills"].measured == 4.5
    rows["a worker", 2].add(kills.Kill(of_worker=True, end_seconds=None, ended_clearly=False))
    short = [goal.what for goal in kills.report_of(rows, num_kills=2, quick=True).goals if not goal.passed]
    assert short == [
        "longest from the kill of a worker to the end of the run, 2 kills",
        "runs that hung, or did not say that a worker died and how to go on",
    ]


def test_a_label_set_of_many_parts_opens(tmp_path):
    scale_steps.write(str(tmp_path), "3000")
    opened = scale_steps.open_many(str(tmp_path))
    assert len(opened["steps"]) == 5
    assert opened["cpu_seconds"] > 0


def test_a_run_over_many_parts_is_planned_from_their_label_set(tmp_path):
    scale_steps.write(str(tmp_path), "3000")
    planned = scale_steps.plan_many(str(tmp_path), "3000")
    assert len(planned["steps"]) == 3


def test_memory_is_measured_in_processes_of_their_own(tmp_path):
    report = memory.run(quick=True, folder=tmp_path, say=logging.info)
    assert len(report.goals) == 3
    assert all(goal.measured < 50 for goal in report.goals)
    assert all(float(row[1]) > 50 for row in report.tables[0].rows)
