"""What a teacher is, remembered by the content of its files: a run that computes nothing loads no teacher."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from pydantic import ValidationError

from pipelines.teachers.base import NO_VECTORS, Teacher
from pipelines.teachers.outputs import FeatureShape
from pipelines.teachers.text_base import NetworkShape, TextTeacher
from pipelines.teachers.text_networks import head_of
from storage.cache import Cache
from storage.config import TeacherConfig
from storage.hashing import canonical_json, fingerprint, seal, unseal
from storage.specs import EvaluationView, Positions, Spec, TeacherSpec, TextTeacherSpec

_CHUNK_BYTES = 1 << 22
LOCAL_FOLDER = "local-dir:"
"""What timm writes before a local folder."""
_OF_TRANSFORMERS = ("transformers", "masked_lm", "causal_lm", "sequence_classifier")


class TeacherFacts(Spec):
    """What planning needs to know of a teacher."""

    spec: TeacherSpec
    evaluation: EvaluationView
    class_names: tuple[str, ...] | None
    shape: FeatureShape = NO_VECTORS
    """What vectors it gives."""

    @classmethod
    def of(cls, teacher: Teacher) -> TeacherFacts:
        """Return the facts of a loaded teacher."""
        return cls(
            spec=teacher.spec,
            evaluation=teacher.preprocessing.view,
            class_names=teacher.class_names,
            shape=teacher.vector_shape(),
        )


class KnownTokenizer(Spec):
    """What planning needs to know of a tokenizer; see `storage.text.tokenizer.TokenizerFacts`."""

    sha256: str
    vocabulary_size: int
    mask_id: int | None
    separator_id: int | None
    num_special_tokens: int
    knows_words: bool


class TextTeacherFacts(Spec):
    """What planning needs to know of a teacher of texts."""

    spec: TextTeacherSpec
    shape: NetworkShape
    positions: Positions
    class_names: tuple[str, ...] | None
    tokenizer: KnownTokenizer
    head_sha256: str | None
    """Digest of its head, as hidden states name it; None where the head cannot be stored."""

    @classmethod
    def of(cls, teacher: TextTeacher) -> TextTeacherFacts:
        """Return the facts of a loaded teacher."""
        tokenizer = teacher.tokenizer.facts
        head = head_of(teacher)
        return cls(
            spec=teacher.spec,
            shape=teacher.shape,
            positions=teacher.positions,
            class_names=teacher.class_names,
            head_sha256=None if head is None else head.sha256(),
            tokenizer=KnownTokenizer(
                sha256=tokenizer.sha256,
                vocabulary_size=tokenizer.vocabulary_size,
                mask_id=tokenizer.mask_id,
                separator_id=tokenizer.separator_id,
                num_special_tokens=len(tokenizer.prefix) + len(tokenizer.suffix),
                knows_words=tokenizer.knows_words,
            ),
        )


AnyTeacherFacts: TypeAlias = TeacherFacts | TextTeacherFacts


def facts_of(teacher: Teacher | TextTeacher) -> AnyTeacherFacts:
    """Return the facts of a loaded teacher."""
    return TextTeacherFacts.of(teacher) if isinstance(teacher, TextTeacher) else TeacherFacts.of(teacher)


class _Remembered(Spec):
    """A memo as it is stored; it names itself, so that no other teacher's is taken for it."""

    name: str
    facts: TeacherFacts | TextTeacherFacts


@dataclass(frozen=True)
class TeacherMemo:
    """Facts of teachers in a cache. Losing them costs one load."""

    cache: Cache

    def _name(self, config: TeacherConfig) -> str | None:
        """Return the memo's name, or None for a teacher that is not wholly in local files (a hub tag, a factory's code)."""
        folder = local_folder(config)
        named = config.kind == "timm" and ":" not in config.name and "/" not in config.name
        files = local_files(config)
        if not (folder or named) or not files or not all(file.is_file() for file in files):
            return None
        if config.tokenizer is not None and not Path(config.tokenizer).exists():
            return None
        about = {
            "version": 3,
            # A local folder's own place is no part of what the teacher is.
            "name": None if folder is not None else config.name,
            # What a name or a folder means is the library's to say.
            "library": version("transformers" if config.of_text else config.kind),
            "settings": _settings(config),
            "files": [[file.name if str(file) != config.checkpoint else None, _sha256(file)] for file in files],
        }
        return f"teachers/{fingerprint(about)}.json"

    def find(self, config: TeacherConfig) -> AnyTeacherFacts | None:
        """Return the facts of a teacher that was loaded before from files of the same content."""
        name = self._name(config)
        if name is None:
            return None
        try:
            remembered = _Remembered.model_validate_json(unseal(self.cache.store.read(name)) or b"")
        except (FileNotFoundError, ValidationError):
            return None
        return remembered.facts if remembered.name == name else None

    def remember(self, config: TeacherConfig, *, facts: AnyTeacherFacts) -> None:
        """Keep the facts of a teacher that was just loaded."""
        name = self._name(config)
        if name is not None:
            remembered = _Remembered(name=name, facts=facts)
            self.cache.store.write(name, seal(canonical_json(remembered.model_dump(mode="json"))))


def _settings(config: TeacherConfig) -> dict[str, object]:
    """Return what the config says beside files."""
    exclude = {"device", "checkpoint", "name", "tokenizer"}
    return config.model_dump(mode="json", exclude=exclude)


def local_files(config: TeacherConfig) -> list[Path]:
    """Return the local files a teacher is made of: its folder's, its tokenizer's, its checkpoint, which may be missing."""
    files = _files_of(local_folder(config))
    if config.tokenizer is not None:
        tokenizer = Path(config.tokenizer)
        files += [tokenizer] if tokenizer.is_file() else _files_of(tokenizer)
    return files if config.checkpoint is None else [*files, Path(config.checkpoint)]


def _files_of(folder: Path | None) -> list[Path]:
    return sorted(item for item in folder.iterdir() if item.is_file()) if folder is not None and folder.is_dir() else []


def local_folder(config: TeacherConfig) -> Path | None:
    """Return the local folder that the config names, or None."""
    if config.kind == "timm" and config.name.startswith(LOCAL_FOLDER):
        return Path(config.name.removeprefix(LOCAL_FOLDER))
    if config.kind in _OF_TRANSFORMERS and Path(config.name).is_dir():
        return Path(config.name) / str(config.kwargs.get("subfolder", ""))
    return None


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()
