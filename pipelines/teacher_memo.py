"""What a teacher is, remembered by the content of its files: a run that computes nothing loads no teacher."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipelines.teachers.base import Teacher
from storage.cache import Cache
from storage.config import TeacherConfig
from storage.hashing import fingerprint
from storage.specs import EvaluationView, Spec, TeacherSpec

_CHUNK_BYTES = 1 << 22


class TeacherFacts(Spec):
    """What planning needs to know of a teacher."""

    spec: TeacherSpec
    evaluation: EvaluationView
    class_names: tuple[str, ...] | None

    @classmethod
    def of(cls, teacher: Teacher) -> TeacherFacts:
        """Return the facts of a loaded teacher."""
        return cls(spec=teacher.spec, evaluation=teacher.preprocessing.view, class_names=teacher.class_names)


@dataclass(frozen=True)
class TeacherMemo:
    """Facts of teachers in a cache. Losing them costs one load."""

    cache: Cache

    def _name(self, config: TeacherConfig) -> str | None:
        """Return the memo's name, or None for a teacher that is not wholly in local files (a hub tag, a factory's code)."""
        if config.kind == "factory":
            return None
        path = config.checkpoint or (config.name if config.kind == "transformers" else None)
        if path is None or not Path(path).exists():
            return None
        files = sorted(item for item in Path(path).rglob("*") if item.is_file()) if Path(path).is_dir() else [Path(path)]
        contents = [[str(file.relative_to(path)), _sha256(file)] for file in files]
        # A local folder's own place is no part of what the teacher is.
        name = None if config.kind == "transformers" else config.name
        settings = config.model_dump(mode="json", exclude={"device", "checkpoint", "name"})
        return f"teachers/{fingerprint({'version': 1, 'name': name, 'settings': settings, 'files': contents})}.json"

    def find(self, config: TeacherConfig) -> TeacherFacts | None:
        """Return the facts of a teacher that was loaded before from files of the same content."""
        name = self._name(config)
        if name is None:
            return None
        try:
            return TeacherFacts.model_validate_json(self.cache.store.read(name))
        except (FileNotFoundError, ValidationError):
            return None

    def remember(self, config: TeacherConfig, *, facts: TeacherFacts) -> None:
        """Keep the facts of a teacher that was just loaded."""
        name = self._name(config)
        if name is not None:
            self.cache.store.write(name, facts.model_dump_json().encode())


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()
