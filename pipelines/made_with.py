"""Which library versions made labels that stand, where this environment has others. None of it makes a label invalid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.audit_report import provenance_differences
from pipelines.label_unit import library_versions
from storage.label_set import Manifest


def other_versions(manifest: Manifest) -> list[dict[str, Any]]:
    """Return what `provenance_differences` finds but devices: a plan may be made on a machine that never runs the teacher."""
    made_by = tuple({what: said for what, said in made.items() if what != "device"} for made in manifest.provenance)
    return provenance_differences(made_by, now=library_versions()) if any(made_by) else []


def versions_in_words(differences: Sequence[dict[str, Any]]) -> str:
    """Return a line about what `other_versions` found."""
    versions = ", ".join(f"{one['what']} {' and '.join(one['parts'])} (here {one['now']})" for one in differences)
    return f"{versions}; the labels are valid, and decant audit asks the teacher of now"
