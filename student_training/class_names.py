"""A label is a number; what it means is the order of a source's classes, and two sources may have two."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from storage.errors import ConfigError
from student_training.job import Job


@runtime_checkable
class NamesClasses(Protocol):
    """A stream whose source may say what its labels mean."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in the order of labels; None where the source does not say."""


def require_same_classes(job: Job, *, evaluated: Any) -> None:
    """Check that labels mean the same where a student learns from them and where it is evaluated.

    A folder of test pictures that lacks a class gives all classes behind it other labels. Where soft labels alone are learned,
    classes are the teacher's, and where two sources have no name in common they may still have the same order.

    Args:
        job: the training.
        evaluated: the stream of the evaluation.

    Raises:
        ConfigError: a class has two labels.
    """
    if not job.uses_labels or not isinstance(job.stream, NamesClasses) or not isinstance(evaluated, NamesClasses):
        return
    trained = {name: label for label, name in enumerate(job.stream.classes or ())}
    for label, name in enumerate(evaluated.classes or ()):
        if trained.get(name, label) != label:
            source = "training.source" if job.training.source is not None else "source"
            raise ConfigError(
                f"class {name!r} has label {label} in training.evaluation.source and {trained[name]} in {source}, so accuracies "
                f"would be those of other classes; give both the same classes in the same order (of class folders: list those of "
                f"{source} in training.evaluation.source.classes)"
            )
