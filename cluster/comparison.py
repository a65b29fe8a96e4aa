"""Two caches of one experiment, file by file: is every byte that counts the same?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.hashing import digest, unseal

FOLDERS_THAT_COUNT = ("requests", "label_sets", "names")
"""Folders of a cache that readers look at; what else is there are memos and what was said of runs."""

_KINDS = {
    ".tar": "parts",
    "spec.json": "requests",
    "manifest.json": "label sets",
    ".parquet": "tables of parts",
    ".block": "class means",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class KindComparison:
    """Files of one kind in two caches.

    Attributes:
        differing: names of those that are not the same, or not in both.
        digest: over names and bytes of the first cache's.
    """

    kind: str
    num_files: int
    differing: tuple[str, ...]
    digest: str


def cache_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a local cache that readers look at."""
    files = [file for name in FOLDERS_THAT_COUNT for file in (folder / name).rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files if not file.name.startswith(".")}


def compare_caches(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> list[KindComparison]:
    """Return how the files of two caches compare, by kind.

    Where source and teacher lay when labels were made is in a label set, and no part of what it is: those fields may differ.
    """
    by_kind: dict[str, list[str]] = {}
    for name in sorted({*one, *other}):
        by_kind.setdefault(_kind(name), []).append(name)
    return [
        KindComparison(
            kind=kind,
            num_files=len(names),
            differing=tuple(name for name in names if _content(name, one) != _content(name, other)),
            digest=digest("".join(f"{name} {digest(_content(name, one) or b'')}\n" for name in names).encode()),
        )
        for kind, names in sorted(by_kind.items())
    ]


def _kind(name: str) -> str:
    if name.startswith("names/"):
        return "names"
    return next((kind for ending, kind in _KINDS.items() if name.endswith(ending)), "records of parts")


def _content(name: str, files: Mapping[str, bytes]) -> bytes | None:
    data = files.get(name)
    if data is None or not name.endswith("manifest.json"):
        return data
    body = unseal(data)
    if body is None:
        return data
    manifest = json.loads(body)
    del manifest["source"]
    manifest.pop("teacher", None)
    return json.dumps(manifest, sort_keys=True).encode()
