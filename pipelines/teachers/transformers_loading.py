"""Models of transformers: loaded whole or not at all, and named by what they compute."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.teachers.base import canonical_architecture, describe
from pipelines.teachers.weights import load_weights, read_checkpoint
from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.hashing import fingerprint
from storage.naming import did_you_mean
from storage.text.tokenizer import RECORDED_TOKENIZER

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

_NOT_ARCHITECTURE = frozenset(
    {
        "architectures",
        "dtype",
        "finetuning_task",
        "id2label",
        "label2id",
        "problem_type",
        "torch_dtype",
        "transformers_version",
        RECORDED_TOKENIZER,
    }
)
"""Entries of config.json that do not change what the network computes, or that the spec holds elsewhere."""
_OWN_FIELDS = {"dtype": "precision", "torch_dtype": "precision", "num_labels": "num_classes", "id2label": "num_classes"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """`teacher.kwargs` of a transformers model, by what they are for.

    Attributes:
        overrides: entries of the model's config.
        transport: where its files come from.
    """

    overrides: dict[str, Any]
    transport: dict[str, Any]

    @classmethod
    def of(cls, config: TeacherConfig) -> Arguments:
        """Return the arguments of a config.

        Raises:
            TeacherError: one that has a field of its own in the config.
        """
        for argument, field in _OWN_FIELDS.items():
            if argument in config.kwargs:
                raise TeacherError(f"teacher.kwargs.{argument} would hide what the teacher is: use teacher.{field} instead")
        return cls(
            overrides={key: value for key, value in config.kwargs.items() if key not in config.transport},
            transport=config.transport,
        )


def load_module(config: TeacherConfig, *, auto_class: Any, arguments: Arguments, needs: str) -> Any:
    """Return a model in float32 with all its weights; `config.checkpoint` takes the place of the folder's own.

    Args:
        auto_class: of transformers, `AutoModelFor...`.
        needs: files beside config and weights that the message names, for instance "preprocessor_config.json".

    Raises:
        TeacherError: nothing to load under the name, weights that are partial or do not fit.
    """
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    state = read_checkpoint(config.checkpoint) if config.checkpoint is not None else None
    # The number of classes is a wish only where weights come from a file of their own; a pretrained head keeps its classes.
    labels = {} if state is None or config.num_classes is None else {"num_labels": config.num_classes}
    try:
        model_config, unknown = AutoConfig.from_pretrained(
            config.name, return_unused_kwargs=True, **arguments.overrides, **arguments.transport, **labels
        )
        for key in unknown:
            raise TeacherError(
                f"teacher.kwargs.{key} is no entry of the config of {config.name}.{did_you_mean(key, model_config.to_dict())}"
            )
        if state is not None and config.checkpoint is not None:
            module = auto_class.from_config(model_config, dtype=torch.float32)
            load_weights(module, state, checkpoint=config.checkpoint, name=config.name)
            return module
        module, info = auto_class.from_pretrained(
            config.name, config=model_config, dtype=torch.float32, output_loading_info=True, **arguments.transport
        )
    except TeacherError:
        raise
    except Exception as error:
        raise cannot_load("model", config.name, error, needs=needs) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise TeacherError(
            f"the weights of {config.name} lack {len(missing)} tensors of {type(module).__name__} ({', '.join(missing[:3])}): "
            "they would be random. Give a checkpoint of the whole model (teacher.checkpoint), or a model that was trained "
            "as one"
        )
    if info["unexpected_keys"]:
        _log.info("%s: %d tensors that the model has no place for are left out", config.name, len(info["unexpected_keys"]))
    return module


def architecture_of(module: torch.nn.Module, *, name: str, arguments: Arguments) -> str:
    """Name the class and hash config.json as stored: its defaults in this release of the library are provenance, not identity."""
    from transformers import PretrainedConfig

    stored, _ = PretrainedConfig.get_config_dict(name, **arguments.transport)
    entries = {key: value for key, value in stored.items() if key not in _NOT_ARCHITECTURE and not key.startswith("_")}
    return canonical_architecture(f"{type(module).__name__}@{fingerprint(entries)[:32]}", arguments.overrides)


def class_names(module: Any) -> tuple[str, ...] | None:
    """Return the names of a classifier's classes in the order of its logits, where its config holds them."""
    id2label = dict(module.config.id2label or {})
    names = tuple(id2label.get(index, "") for index in range(len(id2label)))
    # transformers invents LABEL_0, LABEL_1, ... for a model that was saved without names.
    return None if names == tuple(f"LABEL_{index}" for index in range(len(names))) else names


def cannot_load(what: str, name: str, error: Exception, *, needs: str) -> TeacherError:
    """Return the error that says what transformers could not load, and what it needs."""
    return TeacherError(
        f"transformers cannot load the {what} of {name}: {describe(error)}. Give a hub id that can be reached from here, or a "
        f"local folder with config.json, {needs} and weights"
    )
