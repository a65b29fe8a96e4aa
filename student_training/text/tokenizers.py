"""The student's tokenizer: where it is found, and that it is the one whose tokens the student sees."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

from storage.config import ExperimentConfig
from storage.config.students import TransformersStudentConfig
from storage.config.training import TrainingConfig
from storage.errors import ConfigError, DecantError, MismatchError
from storage.sources.files import open_store, reaching
from storage.specs import TextViewSpec
from storage.text.tokenizer import TextTokenizer
from storage.text.tokenizer_backends import wrap_tokenizer

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load_student_tokenizer(config: ExperimentConfig, training: TrainingConfig) -> TextTokenizer:
    """Return the tokenizer that a training reads texts with.

    Raises:
        ConfigError: nothing names one, or it does not load.
    """
    name = training.tokenizer or _student_path(training) or _teacher_name(config)
    if name is None:
        raise ConfigError(
            "training.tokenizer: is needed to read texts, since neither a student.path nor a teacher says which tokenizer it is"
        )
    return _load(name)


def tokenizer_key(training: TrainingConfig) -> str:
    """Return where a config names the tokenizer, for messages."""
    if training.tokenizer is None and _student_path(training) is not None:
        return "training.student.path"
    return "training.tokenizer"


def require_own_tokenizer(training: TrainingConfig, *, view: TextViewSpec, label_set: str) -> None:
    """Refuse labels of other tokens than the student knows: one with a tokenizer of its own, or with weights trained on one.

    Raises:
        ConfigError: the tokenizer that is named does not load.
        MismatchError: it is not that of the labels.
    """
    path = training.tokenizer or _student_path(training)
    if path is None:
        return
    try:
        tokenizer = _load(path)
    except ConfigError:
        if training.tokenizer is not None:
            raise
        # Weights without a tokenizer beside them: nothing says what their tokens are.
        return
    require_tokenizer(tokenizer, view=view, name=path, what=f"label set {label_set!r}")


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


def _teacher_name(config: ExperimentConfig) -> str | None:
    return None if config.teacher is None else config.teacher.tokenizer or config.teacher.name


def _load(name: str) -> TextTokenizer:
    # Said before the first use: loader processes are forked later, and never tokenise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        if _FACTORY.fullmatch(name):
            module, _, attribute = name.partition(":")
            return wrap_tokenizer(getattr(importlib.import_module(module), attribute)(), name=name)
        if name.endswith(".json"):
            return wrap_tokenizer(_read_json(name), name=name)
        from transformers import AutoTokenizer

        return wrap_tokenizer(AutoTokenizer.from_pretrained(name), name=name)
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
