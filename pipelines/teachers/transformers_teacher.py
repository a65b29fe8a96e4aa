"""Teachers from transformers: any image classifier, by hub id or local folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pipelines.teachers.assembly import assemble_teacher
from pipelines.teachers.base import Teacher, canonical_architecture, describe
from pipelines.teachers.transformers_preprocessing import transformers_preprocessing
from pipelines.teachers.weights import load_weights, read_checkpoint
from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.hashing import fingerprint
from storage.naming import did_you_mean

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

_NOT_ARCHITECTURE = frozenset(
    {"architectures", "dtype", "finetuning_task", "id2label", "label2id", "problem_type", "torch_dtype", "transformers_version"}
)
"""Entries of config.json that do not change what the network computes, or that the spec holds elsewhere."""
_OWN_FIELDS = {"dtype": "precision", "torch_dtype": "precision", "num_labels": "num_classes", "id2label": "num_classes"}


_TRANSPORT = frozenset(
    {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token", "trust_remote_code"}
)
"""Arguments that say where files come from, not what the network is."""


def load_transformers_teacher(config: TeacherConfig) -> Teacher:
    """Load an image classifier and its image processor; `config.checkpoint` takes the place of the folder's own weights.

    `kwargs` override entries of the model's config, or say where its files come from (`revision`, `subfolder`, ...).

    Raises:
        TeacherError: nothing to load under the name, weights that are partial or do not fit, preprocessing that cannot be
            expressed.
    """
    for argument, field in _OWN_FIELDS.items():
        if argument in config.kwargs:
            raise TeacherError(f"teacher.kwargs.{argument} would hide what the teacher is: use teacher.{field} instead")
    transport = {key: value for key, value in config.kwargs.items() if key in _TRANSPORT}
    overrides = {key: value for key, value in config.kwargs.items() if key not in _TRANSPORT}
    module = _load_module(config, overrides=overrides, transport=transport)
    return assemble_teacher(
        module,
        config=config,
        architecture=_architecture(module, name=config.name, overrides=overrides, transport=transport),
        preprocessing=transformers_preprocessing(_load_processor(config.name, transport=transport), name=config.name),
        class_names=_class_names(module),
        network=lambda inputs: module(pixel_values=inputs, return_dict=True).logits,
    )


def _load_module(config: TeacherConfig, *, overrides: dict[str, Any], transport: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    state = read_checkpoint(config.checkpoint) if config.checkpoint is not None else None
    # The number of classes is a wish only where weights come from a file of their own; a pretrained head keeps its classes.
    labels = {} if state is None or config.num_classes is None else {"num_labels": config.num_classes}
    try:
        model_config, unknown = AutoConfig.from_pretrained(
            config.name, return_unused_kwargs=True, **overrides, **transport, **labels
        )
        for key in unknown:
            raise TeacherError(
                f"teacher.kwargs.{key} is no entry of the config of {config.name}.{did_you_mean(key, model_config.to_dict())}"
            )
        if state is not None and config.checkpoint is not None:
            module = AutoModelForImageClassification.from_config(model_config, dtype=torch.float32)
            load_weights(module, state, checkpoint=config.checkpoint, name=config.name)
            return module
        module, info = AutoModelForImageClassification.from_pretrained(
            config.name, config=model_config, dtype=torch.float32, output_loading_info=True, **transport
        )
    except TeacherError:
        raise
    except Exception as error:
        raise _cannot_load("model", config.name, error) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise TeacherError(
            f"the weights of {config.name} lack {len(missing)} tensors of {type(module).__name__} ({', '.join(missing[:3])}): "
            "they would be random. Give a checkpoint of the whole classifier (teacher.checkpoint), or a model that was trained "
            "as one"
        )
    if info["unexpected_keys"]:
        _log.info("%s: %d tensors that the classifier has no place for are left out", config.name, len(info["unexpected_keys"]))
    return module


def _load_processor(name: str, *, transport: dict[str, Any]) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(name, **transport)
    except Exception as error:
        raise _cannot_load("image processor", name, error) from error


def _architecture(module: torch.nn.Module, *, name: str, overrides: dict[str, Any], transport: dict[str, Any]) -> str:
    """Name the class and hash config.json as stored: its defaults in this release of the library are provenance, not identity."""
    from transformers import PretrainedConfig

    stored, _ = PretrainedConfig.get_config_dict(name, **transport)
    entries = {key: value for key, value in stored.items() if key not in _NOT_ARCHITECTURE and not key.startswith("_")}
    return canonical_architecture(f"{type(module).__name__}@{fingerprint(entries)[:32]}", overrides)


def _class_names(module: Any) -> tuple[str, ...] | None:
    id2label = dict(module.config.id2label or {})
    names = tuple(id2label.get(index, "") for index in range(len(id2label)))
    # transformers invents LABEL_0, LABEL_1, ... for a model that was saved without names.
    return None if names == tuple(f"LABEL_{index}" for index in range(len(names))) else names


def _cannot_load(what: str, name: str, error: Exception) -> TeacherError:
    return TeacherError(
        f"transformers cannot load the {what} of {name}: {describe(error)}. Give a hub id that can be reached from here, or a "
        "local folder with config.json, preprocessor_config.json and weights"
    )
