"""What a teacher is, remembered by the content of its files: a run that computes nothing loads no teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from pydantic import ValidationError

from pipelines.teachers.base import NO_VECTORS, Teacher
from pipelines.teachers.outputs import FeatureShape
from pipelines.teachers.text_base import NetworkShape, TextTeacher
from pipelines.teachers.text_networks import find_head
from storage.cache import Cache
from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.hashing import canonical_json, seal, unseal
from storage.specs import EvaluationView, Positions, Spec, TeacherSpec, TextTeacherSpec
from storage.teacher_files import memo_name


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
    why_no_head: str = ""
    """What to say where the head is asked for and cannot be stored."""

    @classmethod
    def of(cls, teacher: TextTeacher) -> TextTeacherFacts:
        """Return the facts of a loaded teacher."""
        tokenizer = teacher.tokenizer.facts
        head_sha256, why_no_head = None, ""
        try:
            head_sha256 = find_head(teacher).sha256()
        except TeacherError as error:
            why_no_head = str(error)
        return cls(
            spec=teacher.spec,
            shape=teacher.shape,
            positions=teacher.positions,
            class_names=teacher.class_names,
            head_sha256=head_sha256,
            why_no_head=why_no_head,
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

    def find(self, config: TeacherConfig) -> AnyTeacherFacts | None:
        """Return the facts of a teacher that was loaded before from files of the same content."""
        name = memo_name(config)
        if name is None:
            return None
        try:
            remembered = _Remembered.model_validate_json(unseal(self.cache.store.read(name)) or b"")
        except (FileNotFoundError, ValidationError):
            return None
        return remembered.facts if remembered.name == name else None

    def remember(self, config: TeacherConfig, *, facts: AnyTeacherFacts) -> None:
        """Keep the facts of a teacher that was just loaded."""
        name = memo_name(config)
        if name is not None:
            remembered = _Remembered(name=name, facts=facts)
            self.cache.store.write(name, seal(canonical_json(remembered.model_dump(mode="json"))))
