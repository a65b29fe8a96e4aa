"""Teachers: networks that label. Frameworks are imported when a teacher is loaded, not with this package."""

from collections.abc import Callable

from pipelines.teachers.base import Preprocessing, Teacher
from pipelines.teachers.devices import resolve_device
from pipelines.teachers.factory_teacher import load_factory_teacher
from pipelines.teachers.timm_teacher import load_timm_teacher
from pipelines.teachers.transformers_teacher import load_transformers_teacher
from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.naming import did_you_mean

__all__ = ["LOADERS", "Preprocessing", "Teacher", "load_teacher", "resolve_device"]

LOADERS: dict[str, Callable[[TeacherConfig], Teacher]] = {
    "factory": load_factory_teacher,
    "timm": load_timm_teacher,
    "transformers": load_transformers_teacher,
}
"""How each kind of teacher is loaded."""


def load_teacher(config: TeacherConfig) -> Teacher:
    """Load a teacher onto its device, ready to label.

    Raises:
        TeacherError: it cannot be loaded or run as configured; the message says what to change.
    """
    loader = LOADERS.get(config.kind)
    if loader is None:
        raise TeacherError(f"there is no teacher of kind {config.kind!r}.{did_you_mean(config.kind, LOADERS)}")
    # Before anything is downloaded or read.
    resolve_device(config.device)
    return loader(config)
