"""The end of a run: its parts are looked at once more, and named by a label set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipelines.dead_letter_limit import SHOWN_LETTERS, describe_letter, limit_error, num_dead_rows
from pipelines.planned_run import PlannedRun
from pipelines.teacher_memo import TeacherMemo
from pipelines.teachers.text_base import TextTeacher
from pipelines.teachers.text_networks import head_of
from pipelines.transforms import shared_teacher
from storage.errors import CacheError, CorruptError, TeacherError
from storage.label_set import Manifest, UsedPart, commit_label_set
from storage.parts import PartRecord
from storage.specs import HiddenStatesSpec
from storage.standing import still_stands
from storage.teacher_files import memo_name
from storage.teacher_record import TeacherRecord


def keep_head(run: PlannedRun) -> None:
    """Make sure that the head that hidden states name is in the cache."""
    target = run.plan.request.target
    if not isinstance(target, HiddenStatesSpec) or target.head_sha256 is None:
        return
    with contextlib.suppress(CorruptError):
        run.cache.head(target.head_sha256)
        return
    teacher = shared_teacher(run.teacher_config)
    assert isinstance(teacher, TextTeacher)
    head = head_of(teacher)
    found = "none" if head is None else run.cache.add_head(head)
    if found != target.head_sha256:
        raise TeacherError(
            f"the head of teacher {teacher.name} has digest {found[:16]} here, {target.head_sha256[:16]} was planned: another "
            "device or library version computes it otherwise. Remove teachers/ from the cache and run the same command again"
        )


def _records(run: PlannedRun) -> Iterator[tuple[UsedPart, PartRecord]]:
    """Yield the parts of a run with their records.

    Raises:
        CacheError: a part is not committed.
        DeadLetterLimitError: after the last part, more rows have no label than the config allows.
    """
    shown: list[str] = []
    num_letters = num_dead = num_rows = 0
    records = run.cache.find_parts(used.part for used in run.plan.parts)
    for used, record in zip(run.plan.parts, records, strict=True):
        if record is None:
            raise _lost(run, used)
        views = range(used.first_view, used.first_view + used.num_views)
        num_rows += record.num_samples * len(views)
        num_dead += num_dead_rows(record.dead_letters, views=views)
        for letter in record.dead_letters:
            if letter.view is None or letter.view in views:
                num_letters += 1
                if num_letters <= SHOWN_LETTERS:
                    shown.append(describe_letter(used.unit_name, letter))
        yield used, record
    limit = run.config.generation.dead_letter_limit
    if num_dead <= limit * num_rows:
        return
    if num_letters > SHOWN_LETTERS:
        shown.append(f"  ... and {num_letters - SHOWN_LETTERS} more")
    raise limit_error(num_dead, num_rows=num_rows, share=limit, shown=shown)


def _lost(run: PlannedRun, used: UsedPart) -> CacheError:
    record = run.cache.record_name(used.part)
    if not run.cache.store.exists(record):
        return CacheError(
            f"part {used.part.name} of unit {used.unit_name!r} is not committed although the pipeline ended; "
            "run the same command again"
        )
    return CacheError(
        f"{run.cache.store.url}/{record}: the tar of this part, of unit {used.unit_name!r}, is missing or not as long as was "
        "committed; remove this record and run the same command again, or run decant repair"
    )


def commit(run: PlannedRun) -> Manifest:
    """Commit the label set of a run, all of whose parts are there.

    Raises:
        CacheError: a part is not committed.
        DeadLetterLimitError: more rows have no label than the config allows; nothing was committed.
    """
    run.cache.add_request(run.plan.request)
    standing = run.plan.standing
    if standing is not None and not run.plan.tasks and _is_enough(run, standing):
        run.cache.point_name(run.config.name, label_set=standing.id)
        return standing
    # Writes nothing before the last record was read: a run with too many dead letters leaves no label set.
    return commit_label_set(
        run.cache,
        identity=run.plan.label_set,
        name=run.config.name,
        request=run.plan.request,
        parts=_records(run),
        num_views=run.plan.num_views,
        classes=run.source.classes,
        source=run.source_config.model_dump(mode="json"),
        teacher=_teacher_record(run),
    ).manifest


def _teacher_record(run: PlannedRun) -> TeacherRecord | None:
    """Return what the label set says of its teacher; None where its files were replaced while the run went on."""
    if memo_name(run.teacher_config) is not None:
        facts = TeacherMemo(run.cache).find(run.teacher_config)
        if facts is None or facts.spec != run.plan.request.teacher:
            return None
    return TeacherRecord.of(run.teacher_config)


def _is_enough(run: PlannedRun, manifest: Manifest) -> bool:
    """Return whether a label set that stands can be taken as it is, without a look at its parts' records."""
    # A letter may be of all views of its sample; which ones are, only the records say.
    most_dead_rows = manifest.num_dead_letters * manifest.num_views
    num_rows = manifest.num_samples * manifest.num_views
    few_enough = most_dead_rows <= run.config.generation.dead_letter_limit * num_rows
    return few_enough and run.source.classes in (None, manifest.classes) and still_stands(run.cache, manifest)
