"""Teachers of texts from your own code: `package.module:factory`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from pipelines.teachers.attention_capture import install
from pipelines.teachers.base import canonical_architecture
from pipelines.teachers.factory_teacher import call_factory
from pipelines.teachers.text_assembly import assemble_text_teacher
from pipelines.teachers.text_base import TextTeacher
from pipelines.teachers.text_teacher import max_length_of
from pipelines.teachers.weights import load_weights, read_checkpoint
from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.naming import did_you_mean
from storage.specs import Positions

if TYPE_CHECKING:
    import torch

_ENTRIES = ("positions", "max_length", "class_names")


def load_text_factory(config: TeacherConfig) -> TextTeacher:
    """Call `factory(**kwargs)` and load `config.checkpoint` into what it returns, where one is given.

    The factory returns `(module, description)`. `module(input_ids, attention_mask)`, both int64 [batch, tokens] and padded on the
    right, gives logits [batch, tokens, vocabulary] or [batch, classes], or a mapping with `logits` and, where there are any,
    `hidden_states` (from what enters the first layer on) and `embedding` [batch, width]. A model of transformers is run as such.
    The description has `positions`, the rows its labels have (masked, all, next; view: one for the whole sequence), and
    optionally `max_length` in tokens (else that of a model of transformers, where its config says it) and `class_names`.

    The identity of such a teacher is the dotted name, the kwargs and the weights, not the factory's code: rename the factory when
    its forward pass changes.

    Raises:
        TeacherError: the name cannot be imported, the factory fails or returns something else, the checkpoint does not fit.
    """
    from transformers import PreTrainedModel

    # The module of tokenizers reaches this package for its words of errors.
    from pipelines.text.tokenizers import load_tokenizer

    made = call_factory(config)
    module, description = _take_apart(made, name=config.name)
    if config.checkpoint is not None:
        load_weights(module, read_checkpoint(config.checkpoint), checkpoint=config.checkpoint, name=config.name)
    assert config.tokenizer is not None
    tokenizer = load_tokenizer(config.tokenizer)
    positions: Positions = description["positions"]
    if positions == "masked" and tokenizer.facts.mask_id is None:
        raise TeacherError(
            f"teacher {config.name} gives labels of masked tokens, and its tokenizer has no mask token. Give another tokenizer "
            "(teacher.tokenizer)"
        )
    names = description.get("class_names")
    is_of_transformers = isinstance(module, PreTrainedModel)
    known_limit = max_length_of(module) if is_of_transformers else None
    return assemble_text_teacher(
        module,
        config=config,
        architecture=canonical_architecture(config.name, config.kwargs),
        tokenizer=tokenizer,
        positions=positions,
        max_length=description.get("max_length", known_limit),
        reads_attention=install(module, name=config.name) if is_of_transformers else None,
        class_names=None if names is None else tuple(names),
    )


def _take_apart(made: object, *, name: str) -> tuple[torch.nn.Module, Mapping[str, Any]]:
    import torch

    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], torch.nn.Module) and isinstance(made[1], Mapping)):
        raise TeacherError(
            f"teacher factory {name} returned {type(made).__name__}; it must return (torch.nn.Module, {{'positions': 'masked'}})"
        )
    for key in made[1]:
        if key not in _ENTRIES:
            raise TeacherError(f"teacher factory {name}: its description has no entry {key!r}.{did_you_mean(key, _ENTRIES)}")
    positions = made[1].get("positions")
    if positions not in get_args(Positions):
        raise TeacherError(
            f"teacher factory {name}: positions {positions!r} of its description; give one of {', '.join(get_args(Positions))}"
        )
    return made
