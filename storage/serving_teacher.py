"""Whether a label set was made by the teacher that a config names, which nothing here loads."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from storage.cache import Cache
from storage.config import ExperimentConfig, TeacherConfig
from storage.errors import CacheError
from storage.hashing import unseal
from storage.label_set import LabelSet
from storage.specs import ImportedTeacher, TeacherSpec, TextTeacherSpec
from storage.teacher_files import memo_name


class _Facts(BaseModel):
    spec: TeacherSpec | TextTeacherSpec


class _Memo(BaseModel):
    """Of what the labelling side remembers of a teacher, what its labels are named by."""

    name: str
    facts: _Facts


def differing_teacher(label_set: LabelSet, *, config: ExperimentConfig, named: bool) -> list[str]:
    """Return every field in which the config's teacher is not that of the labels; none where the config has no teacher.

    Args:
        named: the label set was named, not found by the experiment's own name: then only what every label set says of its teacher
            is compared, not its files.
    """
    teacher, spec = config.teacher, label_set.manifest.request.teacher
    if teacher is None:
        return []
    if isinstance(spec, ImportedTeacher):
        asked: dict[str, Any] = {"num_classes": teacher.num_classes} | ({} if named else {"kind": teacher.kind})
    else:
        asked = {"kind": teacher.kind, "precision": teacher.precision, "num_classes": teacher.num_classes}
    differing = [
        f"teacher.{field}: the config asks for {value!r}, the label set holds {getattr(spec, field)!r}"
        for field, value in asked.items()
        if value is not None and value != getattr(spec, field)
    ]
    if differing or named or isinstance(spec, ImportedTeacher):
        return differing
    known, record = _remembered(label_set.cache, teacher), label_set.manifest.teacher
    if known == spec:
        return []
    by_record = [] if record is None else record.why_other(teacher)
    return by_record if known is None else by_record or _differing_spec(known, spec=spec)


def remedy(differing: list[str], *, named: bool) -> str:
    """Return what else helps against lines of `differing_teacher`; nothing where there are none."""
    if not differing:
        return ""
    this = "" if named else ", or, where only its files or arguments differ, name this label set there"
    return f". Students need no teacher beside stored labels: leave teacher out of the config{this}"


def _remembered(cache: Cache, config: TeacherConfig) -> TeacherSpec | TextTeacherSpec | None:
    """Return what a teacher made of the same files was found to be when it was last loaded for this cache."""
    try:
        name = memo_name(config)
        if name is None:
            return None
        memo = _Memo.model_validate_json(unseal(cache.store.read(name)) or b"")
    except (OSError, CacheError, ValidationError):  # a memo only saves time
        return None
    return memo.facts.spec if memo.name == name else None


def _differing_spec(known: TeacherSpec | TextTeacherSpec, *, spec: TeacherSpec | TextTeacherSpec) -> list[str]:
    asked, holds = known.to_json(), spec.to_json()
    return [
        f"teacher: the config's has {field} {asked.get(field)!r}, that of the label set {holds.get(field)!r}"
        for field in sorted(asked.keys() | holds.keys())
        if asked.get(field) != holds.get(field)
    ]
