"""`decant cache`: what is in a cache, in figures and in words."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from tqdm import tqdm

from storage.cache import Cache
from storage.description import target_words, view_words
from storage.errors import CacheError, CorruptError
from storage.label_set import LabelSet
from storage.parts import DeadLetter, PartRecord
from storage.remedies import EITHER_REPAIR, IMPORT_AGAIN, REPAIR, are_imported
from storage.specs import ImportedTeacher, SoftLabelsSpec, TargetSpec, TeacherSpec, TextTeacherSpec
from storage.verify import verify


def _all_ids(cache: Cache) -> list[str]:
    """Return the ids of all label sets, also of those that a name still points at but that are gone."""
    return sorted({*cache.label_set_ids(), *cache.names().values()})


def list_cache(url: str) -> dict[str, Any]:
    """Return one entry a label set; damaged ones are listed with their error."""
    cache = Cache.at(url)
    names, problems = cache.read_names()
    named: dict[str, list[str]] = {}
    tags: dict[str, list[str]] = {}
    for label, found in names.items():
        (tags if found.is_tag else named).setdefault(found.label_set, []).append(label)
    entries: list[dict[str, Any]] = []
    for label_set in _all_ids(cache):
        try:
            manifest = LabelSet.open_id(cache, label_set=label_set).manifest
        except CacheError as error:
            problems.append(str(error))
            continue
        entries.append(
            {
                "id": label_set,
                "names": sorted(named.get(label_set, [])),
                "tags": sorted(tags.get(label_set, [])),
                "teacher": manifest.request.teacher.architecture,
                "view": manifest.request.view.kind,
                "num_views": manifest.num_views,
                "num_rows": manifest.num_rows,
                "bytes": manifest.parts_bytes,
            }
        )
    lines = [f"{'id':<34}{'name':<24}{'teacher':<34}{'views':>6}{'rows':>14}{'bytes':>16}"]
    lines += [
        f"{entry['id']:<34}{', '.join([*entry['names'], *entry['tags']])[:23]:<24}{entry['teacher'][:33]:<34}"
        f"{entry['num_views']:>6}{entry['num_rows']:>14,}{entry['bytes']:>16,}"
        for entry in entries
    ]
    if not entries and not problems:
        lines = [f"{url} holds no label set; make one with `decant label`"]
    return {"label_sets": entries, "problems": problems, "text": "\n".join([*lines, *problems])}


def show_label_set(url: str, *, name: str, with_dead_letters: bool = False) -> dict[str, Any]:
    """Return what a label set is."""
    label_set = LabelSet.open(Cache.at(url), name_or_id=name)
    manifest = label_set.manifest
    view, target = manifest.request.view, manifest.request.target
    statistics = manifest.statistics
    rows, values = max(statistics.num_rows, 1), max(statistics.num_value_rows, 1)
    figures: dict[str, Any] = {
        **manifest.model_dump(mode="json", exclude={"statistics", "classes"}),
        "num_classes": target.num_classes if isinstance(target, SoftLabelsSpec) else None,
        "classes": list(manifest.classes) if manifest.classes else None,
        "bytes_per_row": manifest.parts_bytes / rows,
        "num_positions": statistics.num_positions,
        "bytes_per_position": manifest.parts_bytes / statistics.num_positions if statistics.num_positions else None,
        "mass_kept": statistics.mass_kept_sum / values,
        "entries_per_row": statistics.entries_sum / values,
        "codec_kl_mean": statistics.codec_kl_sum / values,
        "codec_kl_max": statistics.codec_kl_max,
        "relative_error": statistics.relative_error,
        "num_empty_rows": statistics.num_empty_rows,
        "num_full_rows": statistics.num_full_rows,
        "agreement": statistics.num_agreeing_rows / statistics.num_labelled_rows if statistics.num_labelled_rows else None,
    }
    letters, num_outdated = _dead_letters(label_set) if with_dead_letters else ([], 0)
    if with_dead_letters:
        figures["dead_letters"] = [letter.model_dump() for letter in letters]
        figures["num_outdated_parts"] = num_outdated
    request = manifest.request
    made_by = "; ".join(", ".join(f"{what} {value}" for what, value in sorted(made.items())) for made in manifest.provenance)
    lines = [
        f"label set {manifest.id}, name {manifest.name!r}",
        *_teacher_lines(request.teacher),
        f"  views          {manifest.num_views} x {view_words(view)}",
        f"  target         {target_words(target)}",
        f"  samples        {manifest.num_samples:,} in {manifest.num_units:,} units, {manifest.num_parts:,} parts",
        f"  rows           {manifest.num_rows:,}, {manifest.num_dead_letters:,} dead letters",
        f"  bytes          {manifest.parts_bytes:,}, {figures['bytes_per_row']:.1f} a row",
        *_value_lines(figures, target=target),
    ]
    lines += [f"  served by      parts that hold {target_words(wider)}, narrowed when read" for wider in manifest.served_by]
    wrong = manifest.request.why_wrong
    lines += [] if wrong is None else [f"  wrong          {wrong}; {label_set.again}"]
    if figures["agreement"] is not None:
        right = "text's own tokens" if statistics.num_positions else "hard labels"
        lines.append(f"  agreement      {figures['agreement']:.4f} with the {right}")
    lines.append(f"  source         {manifest.source.get('kind')} {manifest.source.get('path')}")
    lines.append(f"  made by        {made_by}")
    lines += [
        f"  dead letter    {letter.key} at {letter.position}, "
        f"{'all views' if letter.view is None else f'view {letter.view}'}, {letter.stage}: {letter.reason}"
        for letter in letters
    ]
    if num_outdated:
        lines.append(
            f"  made anew      {num_outdated:,} parts were tried again or made anew since: their dead letters are those of now. "
            f"The label set reads them as they were; to read them as they are now, {label_set.again}"
        )
    # Many fail in the same place: each is said once.
    for trace, count in Counter(letter.traceback for letter in letters if letter.traceback).most_common():
        lines.append(f"  raised         {count:,} of these dead letters, innermost last")
        lines += [f"                   {line}" for line in trace.splitlines()]
    return {**figures, "text": "\n".join(lines)}


def _value_lines(figures: dict[str, Any], *, target: TargetSpec) -> list[str]:
    """Return what storing did to the values."""
    lines = []
    row = "row"
    if figures["num_positions"]:
        row = "token"
        lines.append(f"  tokens         {figures['num_positions']:,} with values, {figures['bytes_per_position']:.1f} bytes each")
    if not isinstance(target, SoftLabelsSpec):
        return [*lines, f"  error          {figures['relative_error']:.2%} of the vectors, root mean square"]
    kept = f"{figures['mass_kept']:.4f} in {figures['entries_per_row']:.1f} classes a {row}"
    return [
        *lines,
        f"  mass kept      {kept}; {figures['num_empty_rows']:,} {row}s keep none",
        f"  codec KL       {figures['codec_kl_mean']:.2e} mean, {figures['codec_kl_max']:.2e} largest (nats)",
    ]


def _teacher_lines(teacher: TeacherSpec | TextTeacherSpec | ImportedTeacher) -> list[str]:
    if isinstance(teacher, ImportedTeacher):
        return [
            f"  teacher        {teacher.architecture}, as whoever imported its labels called it",
            "                 weights not known",
        ]
    precision = f"{teacher.kind} {teacher.architecture}, {teacher.precision}"
    return [f"  teacher        {precision}", f"                 weights {teacher.weights_sha256}"]


def _dead_letters(label_set: LabelSet) -> tuple[list[DeadLetter], int]:
    """Return the dead letters of a label set's parts, and how many of these have another tar by now than the one that is read."""
    store = label_set.cache.store
    letters: list[DeadLetter] = []
    num_outdated = 0
    for index, row in enumerate(label_set.parts.select(["first_view", "num_views", "tar_name"]).to_pylist()):
        name = f"{label_set.tar_path(index).rsplit('.', 2)[0]}.json"
        try:
            record = PartRecord.from_bytes(store.read(name), origin=f"{store.url}/{name}")
        except FileNotFoundError as error:
            raise CorruptError(f"{store.url}/{name} is missing, and with it the dead letters; {label_set.again}") from error
        views = range(row["first_view"], row["first_view"] + row["num_views"])
        letters += [letter for letter in record.dead_letters if letter.view is None or letter.view in views]
        num_outdated += record.tar_name != row["tar_name"]
    return letters, num_outdated


def verify_label_sets(url: str, *, name: str | None = None, quick: bool = False, progress: bool = True) -> dict[str, Any]:
    """Verify one label set, or all of a cache."""
    cache = Cache.at(url)
    ids = _all_ids(cache) if name is None else [LabelSet.open(cache, name_or_id=name).manifest.id]
    if not ids:
        raise CacheError(f"{url} holds no label set; make one with `decant label`")
    reports, lines = [], []
    problems = cache.read_names()[1] if name is None else []
    imported: set[bool] = set()
    for label_set_id in ids:
        try:
            label_set = LabelSet.open_id(cache, label_set=label_set_id)
        except CacheError as error:
            problems.append(str(error))
            continue
        with tqdm(unit="part", desc="verify", file=sys.stderr, disable=not (progress and sys.stderr.isatty())) as bar:

            def advance(done: int, total: int, bar: Any = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            report = verify(label_set, quick=quick, on_progress=advance)
        problems += report.problems
        imported |= {are_imported(label_set.manifest.request)} if report.problems else set()
        reports.append(
            {
                "id": label_set_id,
                "name": label_set.manifest.name,
                "num_parts": report.num_parts,
                "num_blocks": report.num_blocks,
                "num_rows": report.num_rows,
                "num_bytes": report.num_bytes,
                "num_problems": len(report.problems),
            }
        )
        what = "sizes" if quick else "every byte"
        state = "right" if not report.problems else f"{len(report.problems)} problems"
        lines.append(
            f"{label_set_id} {label_set.manifest.name}: {report.num_parts:,} parts, {report.num_rows:,} rows, {what}: {state}"
        )
    if problems:
        lines += [*problems, *_remedies(imported)]
    return {"label_sets": reports, "problems": problems, "text": "\n".join(lines)}


def _remedies(imported: set[bool]) -> list[str]:
    """Return what mends label sets that were imported, or were not; empty where nothing is left that says it."""
    if not imported:
        return [EITHER_REPAIR]
    again = f"remove what is damaged and {IMPORT_AGAIN}: only that is computed anew"
    return [again if one else REPAIR for one in sorted(imported)]
