"""Teachers: networks that label. Frameworks are imported when a teacher is loaded, not with this package."""

from collections.abc import Callable

from pipelines.teachers.base import Preprocessing, Teacher
from pipelines.teachers.devices import resolve_device
from pipelines.teachers.factory_teacher import load_factory_teacher
from pipelines.teachers.text_base import TextTeacher
from pipelines.teachers.text_factory import load_text_factory
from pipelines.teachers.text_teacher import load_text_teacher
from pipelines.teachers.timm_teacher import load_timm_teacher
from pipelines.teachers.transformers_teacher import load_transformers_teacher
from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.naming import did_you_mean

__all__ = ["LOADERS", "Preprocessing", "Teacher", "TextTeacher", "load_any_teacher", "load_teacher", "resolve_device"]

LOADERS: dict[str, Callable[[TeacherConfig], Teacher | TextTeacher]] = {
    "causal_lm": load_text_teacher,
    "factory": load_factory_teacher,
    "masked_lm": load_text_teacher,
    "sequence_classifier": load_text_teacher,
    "text_factory": load_text_factory,
    "timm": load_timm_teacher,
    "transformers": load_transformers_teacher,
}
"""How each kind of teacher is loaded."""


def load_any_teacher(config: TeacherConfig) -> Teacher | TextTeacher:
    """Load a teacher of pictures or of texts onto its device, ready to label.

    Raises:
        TeacherError: it cannot be loaded or run as configured; the message says what to change.
    """
    loader = LOADERS.get(config.kind)
    if loader is None:
        raise TeacherError(f"there is no teacher of kind {config.kind!r}.{did_you_mean(config.kind, LOADERS)}")
    # Before anything is downloaded or read.
    resolve_device(config.device)
    return loader(config)


def load_teacher(config: TeacherConfig) -> Teacher:
    """Load a teacher of pictures onto its device, ready to label.

    Raises:
        TeacherError: it cannot be loaded or run as configured, or reads texts; the message says what to change.
    """
    teacher = load_any_teacher(config)
    if not isinstance(teacher, Teacher):
        raise TeacherError(
            f"teacher {config.name} ({config.kind}) reads texts, and pictures are to be labelled. Choose another teacher.kind"
        )
    return teacher
