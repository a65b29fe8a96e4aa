"""What of a config's label set is damaged or missing: every byte is read, nothing is changed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow.compute as pc
from tqdm import tqdm

from pipelines.plan import find_lenders, make_plan
from pipelines.survey import Survey
from storage.cache import Cache
from storage.errors import CorruptError
from storage.label_set import LabelSet, UsedPart
from storage.parts import BlockExtent, Extent, PartRecord
from storage.specs import HiddenStatesSpec, PartSpec, RequestSpec
from storage.upkeep.damage import (
    DamagedFile,
    ForgivingCache,
    head_damage,
    label_set_damage,
    name_damage,
    nameless_tar_damage,
    read_record,
    request_damage,
    rows_damage,
    tar_damage,
)

_VIEWS = re.compile(r"\.v([0-9]+)-([0-9]+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectedPart:
    """A part of a label set.

    Attributes:
        committed: name of the tar that was committed, which holds its digest; None where nothing is left that says it.
        outdated: the label set reads another tar than the part's record names, and both are whole.
    """

    used: UsedPart
    committed: str | None
    num_bytes: int
    outdated: bool
    damage: tuple[DamagedFile, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What was found.

    Attributes:
        label_set: its id.
        named: the id that the name points at; None where the name is lost.
        whole: whether manifest and table of parts could be read; otherwise the parts are those of the config's plan.
        files: damage outside of parts.
    """

    label_set: str
    named: str | None
    whole: bool
    request: RequestSpec
    requests: dict[str, RequestSpec]
    num_views: int
    parts: tuple[InspectedPart, ...]
    files: tuple[DamagedFile, ...]

    @property
    def damage(self) -> list[DamagedFile]:
        """All that is damaged or missing."""
        return [*self.files, *(damaged for part in self.parts for damaged in part.damage)]

    @property
    def right(self) -> bool:
        """Whether there is nothing to do."""
        return self.whole and not self.damage and not any(part.outdated for part in self.parts)


def inspect(cache: Cache, *, name: str, survey: Callable[[], Survey], progress: bool) -> Inspection:
    """Look at every byte of the label set that a name points at.

    Args:
        survey: called only where the label set itself does not say what its parts are.

    Raises:
        FormatError: files that are whole, but of a release this one cannot read.
        CacheError: the store failed.
    """
    files: list[DamagedFile] = []
    known: str | None = None
    damaged_name = name_damage(cache, name=name)
    if damaged_name is not None:
        files.append(damaged_name)
    else:
        named = cache.find_name(name)
        if named is None:
            files.append(DamagedFile(name=f"names/{name}.json", problem="missing", missing=True))
        else:
            known = named.label_set
    if known is not None:
        of_set = label_set_damage(cache, label_set=known)
        files += of_set
        if all("/class_means" in damaged.name for damaged in of_set):
            return _by_manifest(LabelSet.open_id(cache, label_set=known), files=files, progress=progress)
    found = _by_plan(cache, survey=survey(), files=list(files), progress=progress)
    if known is not None:
        return replace(found, named=known)
    # The name is lost; the label set may be whole.
    of_set = label_set_damage(cache, label_set=found.label_set)
    if all("/class_means" in damaged.name for damaged in of_set):
        opened = LabelSet.open_id(cache, label_set=found.label_set)
        return _by_manifest(opened, files=[*files, *of_set], progress=progress)
    return replace(found, files=(*found.files, *of_set))


def _by_manifest(label_set: LabelSet, *, files: list[DamagedFile], progress: bool) -> Inspection:
    cache, table, manifest = label_set.cache, label_set.parts, label_set.manifest
    targets = {manifest.request.target, *manifest.served_by}
    requests = {one.fingerprint(): one for one in (manifest.request.model_copy(update={"target": t}) for t in targets)}
    used_requests = sorted({manifest.request.fingerprint(), *pc.unique(table.column("request")).to_pylist()})
    files += [damaged for request in used_requests if (damaged := request_damage(cache, request=request)) is not None]
    target = manifest.request.target
    head = target.head_sha256 if isinstance(target, HiddenStatesSpec) else None
    files += [damaged for one in [head] if one is not None and (damaged := head_damage(cache, sha256=one)) is not None]
    parts = []
    for row in _watched(range(table.num_rows), progress=progress):
        cell = {name: table.column(name)[row].as_py() for name in table.column_names}
        views = _VIEWS.search(cell["tar_name"])
        if views is None:
            raise CorruptError(f"{cache.store.url}/{label_set.folder}: {cell['tar_name']!r} names no views")
        first, last = int(views[1]), int(views[2])
        part = PartSpec(request=cell["request"], unit_digest=cell["unit_digest"], first_view=first, num_views=last - first)
        damage = []
        record = read_record(cache, part=part)
        tar = tar_damage(cache, path=label_set.tar_path(row), num_bytes=cell["tar_bytes"], tar_sha256=cell["tar_sha256"])
        tar = tar or rows_damage(
            cache,
            path=label_set.tar_path(row),
            num_samples=cell["num_samples"],
            samples=Extent(**cell["samples"]),
            blocks=[BlockExtent(**block) for block in cell["blocks"]],
            request=manifest.request,
        )
        outdated = False
        if isinstance(record, DamagedFile):
            damage.append(record)
        elif record.tar_name != cell["tar_name"]:
            newer = _tar_of(cache, record=record, request=manifest.request)
            damage += [newer] if newer is not None else []
            outdated = newer is None
        if tar is not None:
            damage.append(tar)
        parts.append(
            InspectedPart(
                used=UsedPart(unit_name=cell["unit_name"], part=part, first_view=cell["first_view"], num_views=cell["num_views"]),
                committed=cell["tar_name"],
                num_bytes=cell["tar_bytes"],
                outdated=outdated,
                damage=tuple(damage),
            )
        )
    return Inspection(
        label_set=manifest.id,
        named=manifest.id,
        whole=True,
        request=manifest.request,
        requests=requests,
        num_views=manifest.num_views,
        parts=tuple(parts),
        files=tuple(files),
    )


def _by_plan(cache: Cache, *, survey: Survey, files: list[DamagedFile], progress: bool) -> Inspection:
    config, request = survey.config, survey.request
    forgiving = ForgivingCache(cache.store)
    plan = make_plan(
        forgiving,
        request=request,
        units=survey.units,
        num_views=config.views.count,
        views_per_part=config.generation.views_per_part,
    )
    files += [damaged for damaged in [request_damage(cache, request=request.fingerprint())] if damaged is not None]
    lenders = find_lenders(cache, request=request)[0]
    parts = []
    tars = _tars(cache, requests={used.part.request for used in plan.parts})
    for used in _watched(plan.parts, progress=progress):
        committed, num_bytes, damage = None, 0, []
        record = read_record(cache, part=used.part)
        if isinstance(record, DamagedFile):
            damage.append(record)
            left = tars.get((used.part.request, used.part.name), [])
            committed = left[0] if len(left) == 1 else None
            paths = [f"{cache.request_folder(used.part.request)}/{name}" for name in left]
            damage += [damaged for path in paths if (damaged := nameless_tar_damage(cache, path=path)) is not None]
        else:
            committed, num_bytes = record.tar_name, record.tar_bytes
            tar = _tar_of(cache, record=record, request=request)
            damage += [tar] if tar is not None else []
        parts.append(InspectedPart(used=used, committed=committed, num_bytes=num_bytes, outdated=False, damage=tuple(damage)))
    return Inspection(
        label_set=plan.label_set,
        named=None,
        whole=False,
        request=request,
        requests={request.fingerprint(): request, **{lender: cache.request(lender) for lender in lenders}},
        num_views=plan.num_views,
        parts=tuple(parts),
        files=tuple(files),
    )


def _tar_of(cache: Cache, *, record: PartRecord, request: RequestSpec) -> DamagedFile | None:
    path = cache.tar_name(record)
    return tar_damage(cache, path=path, num_bytes=record.tar_bytes, tar_sha256=record.tar_sha256) or rows_damage(
        cache, path=path, num_samples=record.num_samples, samples=record.samples, blocks=record.blocks, request=request
    )


def _tars(cache: Cache, *, requests: set[str]) -> dict[tuple[str, str], list[str]]:
    """Return the names of listed tars by request and part: where no record is left, a hint of what was committed."""
    found: dict[tuple[str, str], list[str]] = {}
    for request in sorted(requests):
        for path in cache.store.names(cache.request_folder(request)):
            name = path.rsplit("/", 1)[-1]
            if name.endswith(".tar"):
                found.setdefault((request, name.rsplit(".", 2)[0]), []).append(name)
    return found


def _watched(parts: Sequence[UsedPart] | range, *, progress: bool) -> tqdm[UsedPart | int]:
    return tqdm(parts, unit="part", desc="verify", file=sys.stderr, disable=not (progress and sys.stderr.isatty()))
