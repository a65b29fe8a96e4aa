"""The student's tokenizer: where it is found, and that it is the one whose tokens the student sees."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from typing import Any

from storage.config import ExperimentConfig, TeacherConfig
from storage.config.students import TransformersStudentConfig
from storage.config.training import TrainingConfig
from storage.errors import ConfigError, DecantError, MismatchError
from storage.sources.files import open_store, reaching
from storage.specs import TextViewSpec
from storage.text.tokenizer import RECORDED_TOKENIZER, TextTokenizer
from storage.text.tokenizer_backends import wrap_tokenizer

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load_student_tokenizer(config: ExperimentConfig, training: TrainingConfig) -> TextTokenizer:
    """Return the tokenizer that a training reads texts with.

    Raises:
        ConfigError: nothing names one, or it does not load.
    """
    name = training.tokenizer or _student_path(training)
    if name is not None:
        return _load(name)
    if config.teacher is None:
        raise ConfigError(
            "training.tokenizer: is needed to read texts, since neither a student.path nor a teacher says which tokenizer it is"
        )
    return _load_of_teacher(config.teacher)


def tokenizer_key(training: TrainingConfig) -> str:
    """Return where a config names the tokenizer, for messages."""
    if training.tokenizer is None and _student_path(training) is not None:
        return "training.student.path"
    return "training.tokenizer"


def require_named_tokenizer(training: TrainingConfig, *, view: TextViewSpec, what: str) -> None:
    """Refuse texts of other tokens than those of the tokenizer that the config names.

    Raises:
        ConfigError: it does not load.
        MismatchError: it is another.
    """
    if training.tokenizer is not None:
        require_tokenizer(_load(training.tokenizer), view=view, name=training.tokenizer, what=what)


def require_first_weights(training: TrainingConfig, *, view: TextViewSpec, what: str) -> None:
    """Refuse texts of other tokens than the weights know that a student starts from.

    Decant's own students say in their config which tokens those are, and most folders and hub ids hold a tokenizer. Weights
    that do neither are taken: nothing contradicts them.

    Raises:
        MismatchError: they were trained on other tokens.
    """
    path = _student_path(training)
    if path is None:
        return
    known = _tokenizer_of_weights(path)
    if known is not None and known != view.tokenizer_sha256:
        raise MismatchError(
            f"the weights of {path} know tokens of a tokenizer with fingerprint {known[:12]}, {what} was made with "
            f"{view.tokenizer_sha256[:12]} and {view.vocabulary_size:,} tokens: the same ids mean other words. Start from other "
            "weights, or label with the tokenizer of these"
        )


def require_teacher_tokenizer(teacher: TeacherConfig, *, view: TextViewSpec, label_set: str) -> None:
    """Refuse labels of other tokens than those of the teacher in the config, where its tokenizer is on this machine.

    Labels need no teacher, so nothing is fetched for the comparison.

    Raises:
        MismatchError: the labels are not of this teacher.
    """
    try:
        tokenizer = _load_of_teacher(teacher, fetch=False)
    except ConfigError:
        return
    if tokenizer.facts.sha256 != view.tokenizer_sha256:
        raise MismatchError(
            f"the tokenizer of teacher {teacher.tokenizer or teacher.name} has fingerprint {tokenizer.facts.sha256[:12]} and "
            f"{tokenizer.facts.vocabulary_size:,} tokens, label set {label_set!r} was made with {view.tokenizer_sha256[:12]} and "
            f"{view.vocabulary_size:,} tokens: they are labels of another teacher. Name another label set in training.targets, "
            "run decant label with this config, or leave teacher out"
        )


def require_tokenizer(tokenizer: TextTokenizer, *, view: TextViewSpec, name: str, what: str) -> None:
    """Refuse a tokenizer that is not a view's.

    Args:
        name: of the tokenizer, for the message.
        what: has the view, for the message.

    Raises:
        MismatchError: it is another.
    """
    if tokenizer.facts.sha256 != view.tokenizer_sha256:
        raise MismatchError(
            f"tokenizer {name} has fingerprint {tokenizer.facts.sha256[:12]} and {tokenizer.facts.vocabulary_size:,} tokens, "
            f"{what} was made with {view.tokenizer_sha256[:12]} and {view.vocabulary_size:,} tokens: the same ids mean other "
            "words. Name the labels' tokenizer in training.tokenizer, or label with this one"
        )


def _student_path(training: TrainingConfig) -> str | None:
    """Return where the student's first weights come from: they know the tokens they were trained on."""
    student = training.student
    if not isinstance(student, TransformersStudentConfig):
        return None
    if student.layers_from is not None:
        return student.layers_from.path
    return student.path if student.pretrained else None


def _tokenizer_of_weights(path: str) -> str | None:
    """Return the fingerprint that weights are said to know: by their config, else by the tokenizer beside them."""
    from transformers import PretrainedConfig

    with contextlib.suppress(OSError, ValueError):
        recorded = PretrainedConfig.get_config_dict(path)[0].get(RECORDED_TOKENIZER)
        if recorded is not None:
            return str(recorded)
    with contextlib.suppress(ConfigError):
        return _load(path).facts.sha256
    return None


def _load_of_teacher(teacher: TeacherConfig, *, fetch: bool = True) -> TextTokenizer:
    """Return a teacher's tokenizer, from where the teacher itself comes unless it has a name of its own.

    Raises:
        ConfigError: it does not load, or would have to be fetched.
    """
    arguments = {} if fetch else {"local_files_only": True}
    if teacher.tokenizer is not None:
        return _load(teacher.tokenizer, **arguments)
    return _load(teacher.name, **{**teacher.transport, **arguments})


def _load(name: str, **arguments: Any) -> TextTokenizer:
    # Said before the first use: loader processes are forked later, and never tokenise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        if _FACTORY.fullmatch(name):
            module, _, attribute = name.partition(":")
            return wrap_tokenizer(getattr(importlib.import_module(module), attribute)(), name=name)
        if name.endswith(".json"):
            return wrap_tokenizer(_read_json(name), name=name)
        from transformers import AutoTokenizer

        return wrap_tokenizer(AutoTokenizer.from_pretrained(name, **arguments), name=name)
    except MemoryError:
        raise
    except Exception as error:  # libraries and factories raise what they like
        reason = str(error) if isinstance(error, DecantError) else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"tokenizer {name} cannot be loaded: {reason}. Give training.tokenizer: a hub id, a local folder with "
            "tokenizer.json, a JSON file of tokenizers, or package.module:factory"
        ) from error


def _read_json(url: str) -> Any:
    from tokenizers import Tokenizer

    fs, path = open_store(url)
    with reaching(url, action="read the tokenizer"):
        data: bytes = fs.cat_file(path)
    return Tokenizer.from_buffer(data)
