"""Why was this not reused? What differs between two label sets, or between what is asked for and what a cache holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.cache import Cache
from storage.errors import CacheError, CorruptError
from storage.label_set import LabelSet, Manifest, read_manifest
from storage.narrowing import why_not_narrower
from storage.sources import IndexedUnit
from storage.specs import RequestSpec
from storage.upkeep.comparison_words import Figures, label_sets_in_words, request_in_words
from storage.upkeep.unit_comparison import LOOKED_INTO, SHOWN, compare_units, units_indexed, units_of, why_changed, why_other_keys

_MEANINGS = {
    "teacher.weights_sha256": "other weights",
    "teacher.architecture": "another network",
    "teacher.normalization": "the network sees other numbers",
    "teacher.precision": "the teacher computes with other numbers",
    "view": "other pixels",
    "target": "other values are stored",
}
_LOOKED_AT = 5
"""Requests whose parts are listed in search of the nearest that has labels of some units."""


def compare_label_sets(url: str, *, label_set: str, other_url: str | None = None, other_label_set: str) -> Figures:
    """Return how two label sets differ, of one or of two caches; each by name or id.

    Raises:
        CacheError: there is no such label set, or it is damaged.
    """
    one = LabelSet.open(Cache.at(url), name_or_id=label_set)
    other = LabelSet.open(Cache.at(other_url or url), name_or_id=other_label_set)
    fields = compare_requests(one.manifest.request, other.manifest.request)
    units = compare_units(units_of(one.parts), units_of(other.parts))
    units["changed"] = [
        {**entry, "why": why_changed(one, other, name=entry["unit"]) if index < LOOKED_INTO else None}
        for index, entry in enumerate(units["changed"])
    ]
    figures: Figures = {
        "a": _summary(one, url=url),
        "b": _summary(other, url=other_url or url),
        "same": one.manifest.id == other.manifest.id,
        "fields": fields,
        "a_serves_b": _why_not_served(one.manifest.request, asked=other.manifest.request),
        "b_serves_a": _why_not_served(other.manifest.request, asked=one.manifest.request),
        "units": units,
        "views": {"a": one.manifest.num_views, "b": other.manifest.num_views},
        "classes": compare_classes(one.manifest.classes, other.manifest.classes),
        "provenance": _compare_provenance(one.manifest, other.manifest),
        "source": _differences(_flat(one.manifest.source), _flat(other.manifest.source)),
    }
    return {**figures, "text": "\n".join(label_sets_in_words(figures))}


def compare_requests(one: RequestSpec, other: RequestSpec) -> list[Figures]:
    """Return every field that differs: its dotted name, both values, where it is absent, and what it means."""
    return [
        {**entry, "means": next((text for name, text in _MEANINGS.items() if entry["field"].startswith(name)), None)}
        for entry in _differences(_flat(one.to_json()), _flat(other.to_json()))
    ]


def _flat(value: Any, *, name: str = "") -> dict[str, Any]:
    """Return the leaves of JSON data by dotted names; lists are leaves."""
    if not isinstance(value, dict):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, name=f"{name}.{key}" if name else key)
    return flat


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[Figures]:
    names = [*one, *(name for name in other if name not in one)]
    return [
        {
            "field": name,
            "a": one.get(name),
            "b": other.get(name),
            "absent": "a" if name not in one else "b" if name not in other else None,
        }
        for name in names
        if (name in one) != (name in other) or one.get(name) != other.get(name)
    ]


def _why_not_served(stored: RequestSpec, *, asked: RequestSpec) -> str | None:
    """Return why parts of a request cannot be used for another; None where they can, as they are or narrowed."""
    if stored == asked:
        return None
    for name in ("teacher", "view"):
        entries = [entry for entry in compare_requests(stored, asked) if entry["field"].startswith(f"{name}.")]
        if entries:
            return f"{', '.join(entry['field'] for entry in entries)} differs"
    return why_not_narrower(stored.target, asked=asked.target)


def _summary(label_set: LabelSet, *, url: str) -> Figures:
    manifest = label_set.manifest
    return {
        "cache": url,
        "id": manifest.id,
        "name": manifest.name,
        "num_units": manifest.num_units,
        "num_samples": manifest.num_samples,
        "num_views": manifest.num_views,
        "num_rows": manifest.num_rows,
        "num_dead_letters": manifest.num_dead_letters,
        "parts_bytes": manifest.parts_bytes,
    }


def compare_classes(one: Sequence[str] | None, other: Sequence[str] | None) -> Figures:
    """Return how two lists of class names differ; None: not known."""
    mine, theirs = list(one or ()), list(other or ())
    positions = [i for i in range(max(len(mine), len(theirs))) if mine[i : i + 1] != theirs[i : i + 1]]
    known = one is not None and other is not None
    shown: list[Figures] = [
        {"class": i, "a": mine[i] if i < len(mine) else None, "b": theirs[i] if i < len(theirs) else None}
        for i in positions[:SHOWN]
    ]
    return {
        "same": (one is None and other is None) or (known and mine == theirs),
        "known": {"a": one is not None, "b": other is not None},
        "num_classes": {"a": len(mine), "b": len(theirs)},
        "same_names": known and sorted(mine) == sorted(theirs),
        "num_positions": len(positions) if known else 0,
        "positions": shown if known else [],
    }


def _compare_provenance(one: Manifest, other: Manifest) -> list[Figures]:
    def values(manifest: Manifest) -> dict[str, list[str]]:
        found: dict[str, set[str]] = {}
        for made in manifest.provenance:
            for name, value in made.items():
                found.setdefault(name, set()).add(value)
        return {name: sorted(given) for name, given in sorted(found.items())}

    return _differences(values(one), values(other))


def compare_request(
    url: str, *, request: RequestSpec, units: Sequence[IndexedUnit], num_views: int, classes: Sequence[str] | None = None
) -> Figures:
    """Return how what is asked for (A) differs from the nearest that a cache holds (B).

    Nearest is the request with the fewest fields that differ, the teacher's counting most; of equal ones that with the most units
    in common.

    Args:
        units: the source's units, indexed.
        classes: class names of the source, if it has any.
    """
    cache = Cache.at(url)
    digests = [unit.digest for unit in units]
    scored = sorted((_distance(stored, asked=request), fingerprint) for fingerprint, stored in cache.requests())
    if not scored:
        return {"nearest": None, "text": f"{url} holds no labels at all: every row must be computed"}
    covered: dict[str, int] = {}
    for score, candidate in scored:
        if score == scored[0][0]:
            covered[candidate] = len(cache.covering_parts(request=candidate, unit_digests=digests))
    fingerprint = max(covered, key=lambda candidate: (covered[candidate], candidate == request.fingerprint()))
    stored = cache.request(fingerprint)
    ranges = cache.covering_parts(request=fingerprint, unit_digests=digests)
    label_set = _fullest_label_set(cache, request=fingerprint, digests=digests)
    holdings = Counter(_holding(ranges.get(digest, []), num_views=num_views) for digest in digests)
    figures: Figures = {
        "nearest": fingerprint,
        "label_set": None if label_set is None else _summary(label_set, url=url),
        "fields": compare_requests(request, stored),
        "b_serves_a": _why_not_served(stored, asked=request),
        "views": {"a": num_views, "b": None if label_set is None else label_set.manifest.num_views},
        "parts": {"all_views": holdings["all"], "some_views": holdings["some"], "no_views": holdings["none"]},
        "units": None,
        "classes": None,
    }
    if label_set is not None:
        compared = compare_units(units_indexed(units), units_of(label_set.parts))
        hashes = {unit.unit.name: unit.key_hash for unit in units}
        compared["changed"] = [
            {
                **entry,
                "why": why_other_keys(label_set, name=entry["unit"], hashed=hashes[entry["unit"]]) if i < LOOKED_INTO else None,
            }
            for i, entry in enumerate(compared["changed"])
        ]
        figures["units"] = compared
        figures["classes"] = compare_classes(classes, label_set.manifest.classes)
    return {**figures, "text": "\n".join(request_in_words(figures, url=url, num_units=len(units)))}


def nearest_request(cache: Cache, *, request: RequestSpec, digests: Sequence[str]) -> Figures | None:
    """Return the nearest other request that has labels of some of these units, and in what it differs; None if none has.

    Args:
        request: what is asked for, A.
        digests: of units that must be labelled.

    Returns:
        Its fingerprint as "request", "num_units" that it has labels of, and "fields" as `compare_requests` gives them.
    """
    scored = sorted(
        (_distance(stored, asked=request), fingerprint) for fingerprint, stored in cache.requests() if stored != request
    )
    for _, fingerprint in scored[:_LOOKED_AT]:
        covered = cache.covering_parts(request=fingerprint, unit_digests=digests)
        if covered:
            fields = compare_requests(request, cache.request(fingerprint))
            return {"request": fingerprint, "num_units": len(covered), "fields": fields}
    return None


def _distance(stored: RequestSpec, *, asked: RequestSpec) -> tuple[int, ...]:
    fields = [entry["field"] for entry in compare_requests(asked, stored)]
    serves = _why_not_served(stored, asked=asked) is None
    return (not serves, *(sum(name.startswith(what) for name in fields) for what in ("teacher", "view", "target")))


def _holding(ranges: Iterable[tuple[int, int]], *, num_views: int) -> str:
    views = {view for first, last in ranges for view in range(first, min(last, num_views))}
    return "all" if len(views) == num_views else "some" if views else "none"


def _fullest_label_set(cache: Cache, *, request: str, digests: Sequence[str]) -> LabelSet | None:
    """Return the label set of a request that shares the most units; those that are damaged are left out."""
    wanted = pa.array(digests, type=pa.string())
    best: tuple[int, str] | None = None
    for identity in cache.label_set_ids():
        try:
            if read_manifest(cache, label_set=identity).request.fingerprint() != request:
                continue
            parts = LabelSet.open_id(cache, label_set=identity).parts
        except (CorruptError, CacheError):
            continue
        shared = pc.sum(pc.is_in(pc.unique(parts.column("unit_digest")), value_set=wanted)).as_py() or 0
        best = max(best or (-1, ""), (shared, identity))
    return LabelSet.open_id(cache, label_set=best[1]) if best is not None else None
