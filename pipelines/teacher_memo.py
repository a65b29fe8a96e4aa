"""What a teacher is, remembered by the content of its files: a run that computes nothing loads no teacher."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from pipelines.teachers.base import Teacher
from storage.cache import Cache
from storage.config import TeacherConfig
from storage.hashing import canonical_json, fingerprint, seal, unseal
from storage.specs import EvaluationView, Spec, TeacherSpec

_CHUNK_BYTES = 1 << 22
_LOCAL_FOLDER = "local-dir:"


class TeacherFacts(Spec):
    """What planning needs to know of a teacher."""

    spec: TeacherSpec
    evaluation: EvaluationView
    class_names: tuple[str, ...] | None

    @classmethod
    def of(cls, teacher: Teacher) -> TeacherFacts:
        """Return the facts of a loaded teacher."""
        return cls(spec=teacher.spec, evaluation=teacher.preprocessing.view, class_names=teacher.class_names)


class _Remembered(Spec):
    """A memo as it is stored; it names itself, so that no other teacher's is taken for it."""

    name: str
    facts: TeacherFacts


@dataclass(frozen=True)
class TeacherMemo:
    """Facts of teachers in a cache. Losing them costs one load."""

    cache: Cache

    def _name(self, config: TeacherConfig) -> str | None:
        """Return the memo's name, or None for a teacher that is not wholly in local files (a hub tag, a factory's code)."""
        folder = _folder(config)
        named = config.kind == "timm" and ":" not in config.name and "/" not in config.name
        files = local_files(config)
        if not (folder or named) or not files or not all(file.is_file() for file in files):
            return None
        about = {
            "version": 1,
            # A local folder's own place is no part of what the teacher is.
            "name": None if folder is not None else config.name,
            # What a name or a folder means is the library's to say.
            "library": version(config.kind),
            "settings": config.model_dump(mode="json", exclude={"device", "checkpoint", "name"}),
            "files": [[file.name if str(file) != config.checkpoint else None, _sha256(file)] for file in files],
        }
        return f"teachers/{fingerprint(about)}.json"

    def find(self, config: TeacherConfig) -> TeacherFacts | None:
        """Return the facts of a teacher that was loaded before from files of the same content."""
        name = self._name(config)
        if name is None:
            return None
        try:
            remembered = _Remembered.model_validate_json(unseal(self.cache.store.read(name)) or b"")
        except (FileNotFoundError, ValidationError):
            return None
        return remembered.facts if remembered.name == name else None

    def remember(self, config: TeacherConfig, *, facts: TeacherFacts) -> None:
        """Keep the facts of a teacher that was just loaded."""
        name = self._name(config)
        if name is not None:
            remembered = _Remembered(name=name, facts=facts)
            self.cache.store.write(name, seal(canonical_json(remembered.model_dump(mode="json"))))


def local_files(config: TeacherConfig) -> list[Path]:
    """Return the local files a teacher is made of: those of its folder by name, then its checkpoint, which may be missing."""
    folder = _folder(config)
    files = sorted(item for item in folder.iterdir() if item.is_file()) if folder is not None and folder.is_dir() else []
    return files if config.checkpoint is None else [*files, Path(config.checkpoint)]


def _folder(config: TeacherConfig) -> Path | None:
    """Return the local folder that the config names, or None."""
    if config.kind == "timm" and config.name.startswith(_LOCAL_FOLDER):
        return Path(config.name.removeprefix(_LOCAL_FOLDER))
    if config.kind == "transformers" and Path(config.name).is_dir():
        return Path(config.name) / str(config.kwargs.get("subfolder", ""))
    return None


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()
