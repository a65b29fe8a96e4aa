"""Students of texts from their configs: fresh, from a checkpoint, or from layers of a deeper network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from storage.config.students import (
    BiLstmStudentConfig,
    MiniAlbertStudentConfig,
    TextCnnStudentConfig,
    TextStudentConfig,
    TransformersStudentConfig,
)
from storage.errors import ConfigError
from storage.naming import did_you_mean
from student_training.quantization import quantize_for_training
from student_training.terms.interface import Positions, Wants
from student_training.text.interface import TextStudent
from student_training.text.layer_initialisation import start_from_layers
from student_training.text.mini_albert import MiniAlbertStudent
from student_training.text.small_students import BiLstmStudent, TextCnnStudent
from student_training.text.transformers_student import TransformersStudent, is_causal

_MODELS: dict[str, Any] = {
    "masked_lm": AutoModelForMaskedLM,
    "causal_lm": AutoModelForCausalLM,
    "sequence_classifier": AutoModelForSequenceClassification,
}
_MISSPELT = 0.8
_OWN_FIELDS = ("num_labels", "id2label", "label2id", "attn_implementation", "_attn_implementation")


def predicts_tokens(config: TextStudentConfig) -> bool:
    """Return whether a student is a language model."""
    return isinstance(config, TransformersStudentConfig | MiniAlbertStudentConfig) and config.head != "sequence_classifier"


def create_text_student(
    config: TextStudentConfig, *, num_classes: int | None, vocabulary_size: int, max_tokens: int
) -> TextStudent:
    """Return the network on the CPU; draws from torch's global generator. It has been shown a sequence of the longest kind.

    Args:
        config: the student.
        num_classes: classes of the targets; of language models, tokens that targets are over, or None for the vocabulary.
        vocabulary_size: token ids are below it.
        max_tokens: most tokens of a sequence.

    Raises:
        ConfigError: no such network, or one that does not fit these texts and targets.
    """
    asked = getattr(config, "num_classes", None)
    classes = asked or num_classes or (vocabulary_size if predicts_tokens(config) else None)
    if classes is None:
        raise ConfigError("training.student.num_classes: is needed, since nothing says how many classes there are")
    student: TextStudent
    match config:
        case BiLstmStudentConfig():
            student = BiLstmStudent(config, vocabulary_size=vocabulary_size, num_classes=classes)
        case TextCnnStudentConfig():
            student = TextCnnStudent(config, vocabulary_size=vocabulary_size, num_classes=classes)
        case MiniAlbertStudentConfig():
            student = MiniAlbertStudent(config, vocabulary_size=vocabulary_size, num_classes=classes, max_tokens=max_tokens)
        case TransformersStudentConfig():
            network = _network(config, num_classes=classes, vocabulary_size=vocabulary_size)
            embedding: Any = network.get_input_embeddings()
            # Padding is masked, so that its embedding gets no gradient anyway; but what a library takes for the padding token may
            # be an ordinary one of these texts, which has to learn.
            embedding.padding_idx = None
            causal = is_causal(network)
            if config.quantization is not None:
                quantize_for_training(
                    network, bits=config.quantization.bits, activation_decay=config.quantization.activation_decay
                )
            student = TransformersStudent(network, kind=config.head, num_classes=classes, causal=causal)
    _try(student, max_tokens=max_tokens, vocabulary_size=vocabulary_size)
    return student.train()


def _network(config: TransformersStudentConfig, *, num_classes: int, vocabulary_size: int) -> PreTrainedModel:
    described = _describe(config, num_classes=num_classes, vocabulary_size=vocabulary_size)
    vocabulary = int(described.vocab_size)
    needed = max(vocabulary_size, num_classes) if predicts_tokens(config) else vocabulary_size
    if vocabulary < needed:
        raise ConfigError(
            f"training.student: its vocabulary has {vocabulary:,} tokens and the texts {needed:,}; use a network of the texts' "
            "tokenizer, or set training.student.config.vocab_size"
        )
    auto = _MODELS[config.head]
    try:
        if config.pretrained:
            network: PreTrainedModel = _pretrained(auto, config.path, key="training.student.path", config=described)
        else:
            network = auto.from_config(described)
        if config.layers_from is not None:
            deeper = _pretrained(auto, config.layers_from.path, key="training.student.layers_from.path")
            start_from_layers(network, deeper=deeper, layers=config.layers_from.layers)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"training.student: a {config.head} of {described.model_type} cannot be made ({type(error).__name__}: "
            f"{_shorten(str(error))}); check architecture, path, config and layers_from"
        ) from error
    if config.head == "causal_lm" and not is_causal(network):
        raise ConfigError(
            f"training.student: this {described.model_type} sees later tokens, so it would copy the next one instead of "
            "predicting it; set training.student.config.is_decoder: true, or use another architecture"
        )
    return network


def _pretrained(auto: Any, path: str | None, *, key: str, **options: Any) -> PreTrainedModel:
    """Return a network with its weights; a head, and a pooler in front of it, may be fresh.

    Raises:
        ConfigError: tensors of its body are not among the weights, so that they would be fresh too.
    """
    network: PreTrainedModel
    network, info = auto.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **options)
    body = f"{network.base_model_prefix}."
    missing = sorted(name for name in info["missing_keys"] if name.startswith(body) and ".pooler." not in name)
    if missing:
        raise ConfigError(
            f"{key}: the weights of {path} lack {len(missing)} tensors of the body of {type(network).__name__} "
            f"({', '.join(missing[:3])}), which would be random; give weights of this architecture and depth, or start fresh "
            "(architecture and config)"
        )
    return network


def _describe(config: TransformersStudentConfig, *, num_classes: int, vocabulary_size: int) -> PretrainedConfig:
    taken = sorted(set(_OWN_FIELDS) & set(config.config))
    if taken:
        raise ConfigError(
            f"training.student.config holds {taken[0]!r}, which Decant sets itself; use training.student.num_classes"
        )
    fields = dict(config.config)
    if config.head == "sequence_classifier":
        fields["num_labels"] = num_classes
    try:
        described: PretrainedConfig
        if config.architecture is not None:
            _check_architecture(config.architecture)
            fields.setdefault("vocab_size", vocabulary_size)
            described = AutoConfig.for_model(config.architecture, **fields)
            unknown = _misspelt(config.config, architecture=config.architecture)
        else:
            assert config.path is not None
            described, unused = AutoConfig.from_pretrained(config.path, return_unused_kwargs=True, **fields)
            unknown = [key for key in config.config if key in unused]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"training.student: its config cannot be read ({type(error).__name__}: {_shorten(str(error))}); check architecture, "
            "path and config"
        ) from error
    for key in unknown:
        raise ConfigError(
            f"training.student.config.{key} is no entry of the config of {described.model_type}, so it would change nothing."
            f"{did_you_mean(key, described.to_dict().keys() - unknown)}"
        )
    described.pad_token_id = _pad_token(described, head=config.head)
    return described


def _misspelt(fields: Mapping[str, Any], *, architecture: str) -> list[str]:
    """Return fields that a network's config does not have but nearly: others may be older names, which become what they mean."""
    plain = AutoConfig.for_model(architecture)
    return [key for key in fields if not hasattr(plain, key) and get_close_matches(key, plain.to_dict(), cutoff=_MISSPELT)]


def _pad_token(described: PretrainedConfig, *, head: str) -> int | None:
    """Return a student's padding token: its config's where it is a token, else none or one that texts seldom hold.

    Networks do not train the embedding of their padding token, and classifiers of causal ones pass over it at the end of a text.
    So an ordinary token is not taken for it where none is needed; padding itself is never looked at.
    """
    candidates = (getattr(described, name, None) for name in ("pad_token_id", "eos_token_id"))
    own, end = (token if isinstance(token, int) and 0 <= token < described.vocab_size else None for token in candidates)
    if own is not None or head == "causal_lm":
        return own
    return end if head == "sequence_classifier" and end is not None else 0


def _check_architecture(name: str) -> None:
    if name not in CONFIG_MAPPING:
        raise ConfigError(f"training.student.architecture: transformers has no {name!r}.{did_you_mean(name, CONFIG_MAPPING)}")


def _try(student: TextStudent, *, max_tokens: int, vocabulary_size: int) -> None:
    """Show the student the longest sequence, so that what does not fit shows before any work starts.

    Raises:
        ConfigError: it does not take it, or does not give one logit a class.
    """
    tokens = torch.arange(max_tokens)[None] % vocabulary_size
    first = Positions(sequence=torch.zeros(1, dtype=torch.int64), position=torch.zeros(1, dtype=torch.int64))
    student.eval()
    try:
        with torch.no_grad():
            output = student(tokens, attention_mask=torch.ones_like(tokens, dtype=torch.bool), wants=Wants(positions=first))
    except Exception as error:  # every network has its own way to refuse a length
        raise ConfigError(
            f"training.student cannot take a sequence of {max_tokens} tokens ({type(error).__name__}: {_shorten(str(error))}); "
            "raise max_position_embeddings in training.student.config, or label shorter views"
        ) from error
    expected = (1, student.shape.num_classes)
    if output.logits is None or tuple(output.logits.shape) != expected:
        found = None if output.logits is None else tuple(output.logits.shape)
        raise ConfigError(f"training.student gives logits of shape {found} where {expected} are needed; check training.student")


def _shorten(text: str, *, limit: int = 400) -> str:
    flat = re.sub(r"\s+", " ", text).strip()
    return flat if len(flat) <= limit else flat[:limit] + " ..."
