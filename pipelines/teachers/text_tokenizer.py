"""The tokenizer of a language model of transformers: the model's own, or one that is named and must be the same."""

from __future__ import annotations

import logging

from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.text.tokenizer import TextTokenizer

_log = logging.getLogger(__name__)


def load_teacher_tokenizer(config: TeacherConfig) -> TextTokenizer:
    """Load the tokenizer that a model was trained with, from where the model itself comes (`revision`, `subfolder`, ...).

    One that is named is compared with the model's own, where the model has one beside its weights. Weights of a checkpoint are
    not those of the folder, whose tokenizer says nothing of them.

    Raises:
        TeacherError: there is none, or the one that is named is not the model's.
    """
    # The module of tokenizers reaches this package for its words of errors.
    from pipelines.text.tokenizers import load_tokenizer

    if config.tokenizer is None:
        return load_tokenizer(config.name, kwargs=config.transport)
    named = load_tokenizer(config.tokenizer)
    if config.checkpoint is not None:
        return named
    try:
        own = load_tokenizer(config.name, kwargs=config.transport)
    except TeacherError as error:
        _log.info("nothing beside the weights of %s says which tokenizer is theirs: %s", config.name, error)
        return named
    if named.facts.sha256 != own.facts.sha256:
        raise TeacherError(
            f"teacher.tokenizer {config.tokenizer} has fingerprint {named.facts.sha256[:12]} and "
            f"{named.facts.vocabulary_size:,} tokens, the tokenizer of {config.name} itself {own.facts.sha256[:12]} and "
            f"{own.facts.vocabulary_size:,}: the same ids mean other words, and every label would be of another text. Leave "
            "teacher.tokenizer out, or name the model that it belongs to"
        )
    return named


def require_trained_tokens(recorded: object, *, tokenizer: TextTokenizer, config: TeacherConfig) -> None:
    """Refuse a tokenizer that is not the one whose tokens a model was trained on, as its config.json says.

    Args:
        recorded: what stands there; None: nothing.

    Raises:
        TeacherError: it is another.
    """
    facts = tokenizer.facts
    if recorded is None or config.checkpoint is not None or recorded == facts.sha256:
        return
    raise TeacherError(
        f"{config.name} was trained on tokens of a tokenizer with fingerprint {str(recorded)[:12]}, and the one of "
        f"{config.tokenizer or config.name} has {facts.sha256[:12]}: the same ids mean other words, and every label would be of "
        "another text. Give the tokenizer that it was trained with (teacher.tokenizer)"
    )
