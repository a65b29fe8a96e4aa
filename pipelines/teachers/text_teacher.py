"""Teachers of texts from transformers: masked and causal language models, classifiers of sequences."""

from __future__ import annotations

from typing import Any

from pipelines.teachers.attention_capture import install
from pipelines.teachers.text_assembly import assemble_text_teacher
from pipelines.teachers.text_base import TextTeacher
from pipelines.teachers.text_tokenizer import load_teacher_tokenizer
from pipelines.teachers.transformers_loading import Arguments, architecture_of, class_names, load_module
from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.specs import Positions

_AUTO_CLASSES = {
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
    "sequence_classifier": "AutoModelForSequenceClassification",
}
_POSITIONS: dict[str, Positions] = {"masked_lm": "masked", "causal_lm": "next", "sequence_classifier": "view"}


def load_text_teacher(config: TeacherConfig) -> TextTeacher:
    """Load a language model or a classifier of sequences; `config.checkpoint` takes the place of the folder's own weights.

    `kwargs` override entries of the model's config, or say where its files come from (`revision`, `subfolder`, ...).

    Raises:
        TeacherError: nothing to load under the name, weights that are partial or do not fit, no tokenizer, or one that is not the
            model's.
    """
    import transformers

    arguments = Arguments.of(config)
    tokenizer = load_teacher_tokenizer(config)
    if config.kind == "masked_lm" and tokenizer.facts.mask_id is None:
        raise TeacherError(
            f"the tokenizer of masked_lm {config.name} has no mask token: nothing could be masked for it. Give the tokenizer "
            "that it was trained with (teacher.tokenizer)"
        )
    auto_class = getattr(transformers, _AUTO_CLASSES[config.kind])
    module = load_module(config, auto_class=auto_class, arguments=arguments, needs="a tokenizer")
    reads_attention = install(module, name=config.name)
    return assemble_text_teacher(
        module,
        config=config,
        architecture=architecture_of(module, name=config.name, arguments=arguments),
        tokenizer=tokenizer,
        positions=_POSITIONS[config.kind],
        max_length=max_length_of(module),
        reads_attention=reads_attention,
        class_names=class_names(module) if config.kind == "sequence_classifier" else None,
    )


def max_length_of(module: Any) -> int | None:
    """Return the most tokens a model of transformers takes; None where its config knows no limit."""
    import torch

    limit = getattr(module.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for name, layer in module.named_modules():
        # RoBERTa counts positions from behind the padding id, which takes rows of the table away.
        if name.endswith("position_embeddings") and isinstance(layer, torch.nn.Embedding) and layer.padding_idx is not None:
            limit = min(limit, layer.num_embeddings - layer.padding_idx - 1)
    return limit
