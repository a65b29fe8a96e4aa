"""`decant repair`: set aside what is damaged, compute only that anew, and say whether it became the same again."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.inspection import InspectedPart, Inspection, inspect
from pipelines.label import planned, run_label
from pipelines.label_task import LabelTask, ListedTasks
from pipelines.plan import LabelPlan
from pipelines.planned_run import PlannedRun
from pipelines.survey import Survey, config_of_each_target, survey_run
from storage.cache import Cache
from storage.config import ExperimentConfig
from storage.errors import ConfigError, MismatchError
from storage.label_set import LabelSet
from storage.remedies import IMPORT_AGAIN
from storage.specs import ImportedTeacher
from storage.upkeep.damage import DamagedFile
from storage.verify import verify

_NUM_SHOWN = 20


def repair(
    config: ExperimentConfig, *, dry_run: bool = False, options: PipelineOptions | None = None, progress: bool = True
) -> dict[str, Any]:
    """Return what was damaged and what was done about it, "problems" that are left, and a readable form under "text".

    Reads every byte of the config's label set. What is damaged is moved to `quarantine/` in the cache, never deleted; missing
    parts are computed by the ordinary label run. Where nothing is damaged no teacher is loaded.

    Args:
        dry_run: look only.

    Raises:
        MismatchError: the config's teacher or source are not those of what must be computed; nothing was moved.
        DecantError: what a label run raises.
    """
    if config.cache is None:
        raise ConfigError("cache: is needed to repair")
    if config.targets is not None:
        return _of_targets(config, dry_run=dry_run, options=options, progress=progress)
    cache = Cache.at(config.cache)
    surveyed: list[Survey] = []

    def survey() -> Survey:
        if not surveyed:
            _check_labels_here(config)
            surveyed.append(survey_run(config, progress=progress, writes=not dry_run))
        return surveyed[0]

    found = inspect(cache, name=config.name, survey=survey, progress=progress)
    if found.right:
        return _report(config, found, text=f"right: every byte of {_size(found)} is what was committed; nothing was done")
    if dry_run:
        return _report(config, found, problems=_problems(found.damage), text=_what_would_be_done(found))
    _check_not_imported(found)
    _check_not_wrong(found)
    broken = [part for part in found.parts if part.damage]
    _check_can_compute(found, survey=survey())
    folder = _set_aside(cache, found.damage)
    for request in {found.request.fingerprint(), *(part.used.part.request for part in found.parts)}:
        cache.add_request(found.requests[request])
    run = _planned(found, survey=survey())
    computed = {task.part for task in run.plan.tasks}
    report = run_label(run, options=options, progress=progress, anyway=True)
    label_set = LabelSet.open_id(cache, label_set=report.label_set)
    left = verify(label_set)
    results = [_result(cache, part, computed=part.used.part in computed) for part in broken]
    return _report(
        config,
        found,
        folder=folder,
        results=results,
        problems=list(left.problems),
        text=_what_was_done(found, folder=folder, results=results, problems=left.problems),
    )


def _of_targets(config: ExperimentConfig, *, dry_run: bool, options: PipelineOptions | None, progress: bool) -> dict[str, Any]:
    """Repair the label sets of all targets, one after the other."""
    found = {
        name: repair(one, dry_run=dry_run, options=options, progress=progress)
        for name, one in config_of_each_target(config).items()
    }
    return {
        "name": config.name,
        "targets": found,
        "problems": [problem for one in found.values() for problem in one["problems"]],
        "text": "\n".join(f"{name}: {one.pop('text')}" for name, one in found.items()),
    }


def _check_labels_here(config: ExperimentConfig) -> None:
    if config.teacher is None:
        raise ConfigError(
            f"teacher: is needed to repair what is damaged of {config.name!r}; where its labels were imported, nothing here can "
            f"compute them: remove what decant cache verify names and {IMPORT_AGAIN}"
        )


def _check_not_imported(found: Inspection) -> None:
    """Refuse, before anything is moved, labels that no teacher made here."""
    if isinstance(found.request.teacher, ImportedTeacher):
        raise MismatchError(
            f"the labels of label set {found.label_set} were imported, and nothing here can compute them; nothing was moved. "
            f"Remove what is damaged and {IMPORT_AGAIN}: only that is computed anew\n"
            + "\n".join(_listed(_problems(found.damage)))
        )


def _check_not_wrong(found: Inspection) -> None:
    """Refuse, before anything is moved, to make anew what no reader takes."""
    wrong = found.request.why_wrong
    if wrong is not None:
        raise MismatchError(
            f"label set {found.label_set} {wrong}; nothing was moved. Run decant label, which computes all of it anew"
        )


def _check_can_compute(found: Inspection, *, survey: Survey) -> None:
    """Refuse, before anything is moved, what this config cannot compute again."""
    if not any(part.damage for part in found.parts):
        return
    made, now = found.request.teacher.to_json(), survey.request.teacher.to_json()
    differing = [
        f"teacher.{name}: it was made by {made.get(name)!r}, the config's is {now.get(name)!r}"
        for name in sorted({*made, *now})
        if made.get(name) != now.get(name)
    ]
    digests = {unit.unit.name: unit.digest for unit in survey.units}
    for part in found.parts:
        used = part.used
        if part.damage and digests.get(used.unit_name) != used.part.unit_digest:
            here = digests[used.unit_name][:16] if used.unit_name in digests else "nothing"
            differing.append(
                f"unit {used.unit_name!r}: it was made of content {used.part.unit_digest[:16]}, the source holds {here}"
            )
    if differing:
        more = [f"... and {len(differing) - 5} more"] if len(differing) > 5 else []
        raise MismatchError(
            f"what is damaged of label set {found.label_set} cannot be computed from this config; nothing was moved:\n"
            + "\n".join(f"  {line}" for line in [*differing[:5], *more])
            + "\nGive the teacher and the source that the labels were made from, or run decant label to make a label set of these"
        )


def _set_aside(cache: Cache, damage: Sequence[DamagedFile]) -> str | None:
    """Move damaged files, and say why beside them."""
    there = {damaged.name: damaged.problem for damaged in damage if not damaged.missing}
    if not there:
        return None
    folder = f"quarantine/{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
    cache.store.write(f"{folder}/why.json", json.dumps(there, indent=1, sort_keys=True).encode())
    for name in sorted(there):
        cache.store.move(name, to=f"{folder}/{name}")
    return folder


def _planned(found: Inspection, *, survey: Survey) -> PlannedRun:
    """Return the run that computes the same parts as before, whatever the config's views_per_part is now."""
    units = {unit.unit.name: unit for unit in survey.units}
    tasks = [
        LabelTask(unit=units[part.used.unit_name].unit, part=part.used.part, num_samples=units[part.used.unit_name].num_samples)
        for part in found.parts
        if part.damage and survey.cache.find_part(part.used.part) is None
    ]
    plan = LabelPlan(
        request=found.request,
        num_views=found.num_views,
        num_units=len(survey.units),
        num_samples=sum(unit.num_samples for unit in survey.units),
        parts=tuple(part.used for part in found.parts),
        tasks=ListedTasks(tasks),
        not_lending={},
        lenders=frozenset(part.used.part.request for part in found.parts) - {found.request.fingerprint()},
    )
    return planned(survey, plan=plan)


def _result(cache: Cache, part: InspectedPart, *, computed: bool) -> dict[str, Any]:
    record = cache.find_part(part.used.part)
    now = record.tar_name if record is not None else None
    return {
        "unit": part.used.unit_name,
        "part": part.used.part.name,
        "recomputed": computed,
        "was": part.committed,
        "is": now,
        "equal": None if part.committed is None else part.committed == now,
    }


def _size(found: Inspection) -> str:
    return f"{len(found.parts):,} parts ({sum(part.num_bytes for part in found.parts):,} bytes) of label set {found.label_set}"


def _problems(damage: Sequence[DamagedFile]) -> list[str]:
    return [f"{damaged.name}: {damaged.problem}" for damaged in damage]


def _listed(lines: Sequence[str]) -> list[str]:
    more = [f"  ... and {len(lines) - _NUM_SHOWN:,} more"] if len(lines) > _NUM_SHOWN else []
    return [*(f"  {line}" for line in lines[:_NUM_SHOWN]), *more]


def _what_is_wrong(found: Inspection) -> list[str]:
    damage = found.damage
    missing = sum(damaged.missing for damaged in damage)
    by_plan = "" if found.whole else "; its manifest is not whole, so its parts are those that the config plans"
    if found.named not in (None, found.label_set):
        by_plan += f" (the name points at {found.named}, which was of another source or config)"
    outdated = sum(part.outdated for part in found.parts)
    return [
        f"checked {_size(found)}{by_plan}",
        f"{len(damage) - missing:,} files damaged, {missing:,} missing:",
        *_listed(_problems(damage)),
        *([f"{outdated:,} parts were made anew since, and the label set reads their older tars"] if outdated else []),
    ]


def _what_would_be_done(found: Inspection) -> str:
    num_parts = sum(bool(part.damage) for part in found.parts)
    return "\n".join(
        [*_what_is_wrong(found), f"a dry run: nothing was moved or computed; repair would make {num_parts:,} parts whole again"]
    )


def _what_was_done(found: Inspection, *, folder: str | None, results: list[dict[str, Any]], problems: Sequence[str]) -> str:
    computed = [one for one in results if one["recomputed"]]
    equal = sum(one["equal"] is True for one in results)
    other = [one for one in results if one["equal"] is False]
    lines = _what_is_wrong(found)
    if folder is not None:
        lines.append(f"damaged files are kept in {folder} of the cache, with why.json")
    lines.append(
        f"{len(computed):,} parts computed anew; of {len(results):,} that were damaged {equal:,} are equal to what was committed"
    )
    if other:
        lines.append("not the same bytes (another device or library version; decant audit tells how far apart):")
        lines += _listed([f"unit {one['unit']!r}: {one['was']} became {one['is']}" for one in other])
    unknown = len(results) - equal - len(other)
    if unknown:
        lines.append(f"of {unknown:,} parts nothing was left that says what was committed")
    lines += [*problems, "still not right"] if problems else ["verified again: every byte is right"]
    return "\n".join(lines)


def _report(
    config: ExperimentConfig,
    found: Inspection,
    *,
    text: str,
    folder: str | None = None,
    results: Sequence[dict[str, Any]] = (),
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    damage = found.damage
    return {
        "name": config.name,
        "label_set": found.label_set,
        "num_parts": len(found.parts),
        "num_bytes": sum(part.num_bytes for part in found.parts),
        "num_damaged_files": sum(not damaged.missing for damaged in damage),
        "num_missing_files": sum(damaged.missing for damaged in damage),
        "num_damaged_parts": sum(bool(part.damage) for part in found.parts),
        "num_outdated_parts": sum(part.outdated for part in found.parts),
        "damage": _problems(damage),
        "quarantine": folder,
        "num_recomputed_parts": sum(one["recomputed"] for one in results),
        "num_equal_parts": sum(one["equal"] is True for one in results),
        "parts": list(results),
        "problems": list(problems),
        "text": text,
    }
