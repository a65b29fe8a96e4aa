"""Start a student from some layers of a deeper network."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from storage.errors import ConfigError

_BERT_TO_DISTILBERT = (
    (r"^bert\.embeddings\.", "distilbert.embeddings."),
    (r"^bert\.encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.", r"distilbert.transformer.layer.\1.attention.\2."),
    (r"\.attention\.query\.", ".attention.q_lin."),
    (r"\.attention\.key\.", ".attention.k_lin."),
    (r"\.attention\.value\.", ".attention.v_lin."),
    (r"^bert\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"distilbert.transformer.layer.\1.attention.out_lin."),
    (r"^bert\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.", r"distilbert.transformer.layer.\1.sa_layer_norm."),
    (r"^bert\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"distilbert.transformer.layer.\1.ffn.lin1."),
    (r"^bert\.encoder\.layer\.(\d+)\.output\.dense\.", r"distilbert.transformer.layer.\1.ffn.lin2."),
    (r"^bert\.encoder\.layer\.(\d+)\.output\.LayerNorm\.", r"distilbert.transformer.layer.\1.output_layer_norm."),
    (r"^cls\.predictions\.transform\.dense\.", "vocab_transform."),
    (r"^cls\.predictions\.transform\.LayerNorm\.", "vocab_layer_norm."),
    (r"^cls\.predictions\.decoder\.", "vocab_projector."),
)
"""Names of BERT's tensors in DistilBERT, applied in order."""


def start_from_layers(student: PreTrainedModel, *, deeper: PreTrainedModel, layers: tuple[int, ...]) -> None:
    """Copy a deeper network into a student: layer `layers[i]` becomes layer i, everything else is taken as it is.

    A head that the deeper network does not have stays fresh. BERT becomes DistilBERT too: what it adds to every token of the
    first segment is added to the positions, so that with all layers the two compute the same.

    Args:
        student: of the same architecture, or DistilBERT where the deeper network is BERT.
        deeper: the network to start from.
        layers: counted from 0.

    Raises:
        ConfigError: layers that are not there or not as many as the student has, or tensors of other names or shapes.

    References:
        Sanh et al., DistilBERT, a distilled version of BERT, https://arxiv.org/abs/1910.01108
    """
    where = "training.student.layers_from"
    into, of = _own_layers(student, where="training.student"), _own_layers(deeper, where=f"{where}.path")
    depth, available = int(student.config.num_hidden_layers), int(deeper.config.num_hidden_layers)
    if len(layers) != depth:
        raise ConfigError(
            f"{where}.layers names {len(layers)} layers and the student has {depth}; name as many (num_hidden_layers)"
        )
    if max(layers) >= available:
        raise ConfigError(f"{where}.layers names layer {max(layers)}, and {_name(deeper)} has layers 0 to {available - 1}")
    tensors = dict(deeper.state_dict())
    if (deeper.config.model_type, student.config.model_type) == ("bert", "distilbert"):
        tensors, of = _as_distilbert(tensors), into
    chosen: dict[str, Tensor] = {}
    body = f"{student.base_model_prefix}."
    for name, tensor in student.state_dict().items():
        inside = re.match(rf"{re.escape(into)}(\d+)\.(.*)", name)
        source = f"{of}{layers[int(inside[1])]}.{inside[2]}" if inside else name
        found = tensors.get(source)
        if found is None and name.startswith(body):
            raise ConfigError(
                f"{where}.path: {_name(deeper)} has no tensor {source!r} for the student's {name!r}; the student must be of the "
                "same architecture, or DistilBERT from BERT"
            )
        if found is not None and found.shape != tensor.shape:
            if name.startswith(body):
                raise ConfigError(
                    f"{where}.path: {source!r} has shape {tuple(found.shape)} and the student's {name!r} {tuple(tensor.shape)}; "
                    "give the student the same widths (hidden_size, intermediate_size, vocab_size, ...) in "
                    "training.student.config"
                )
            found = None
        if found is not None:
            chosen[name] = found
    with torch.no_grad():
        student.load_state_dict(chosen, strict=False)
    student.tie_weights()


def layers_of(network: PreTrainedModel) -> str | None:
    """Return how the names of a network's layers begin, up to their number; None where it has none of their own."""
    depth = int(network.config.num_hidden_layers)
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth and len(list(module.parameters())) > depth:
            return f"{name}."
    return None


def _own_layers(network: PreTrainedModel, *, where: str) -> str:
    found = layers_of(network)
    if found is None:
        raise ConfigError(
            f"{where}: {_name(network)} does not keep {network.config.num_hidden_layers} layers of its own (they may be shared), "
            "so none can be chosen; drop layers_from, or choose another architecture"
        )
    return found


def _as_distilbert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in _BERT_TO_DISTILBERT:
            new = re.sub(pattern, replacement, new)
        renamed[new] = tensor
    segments = renamed.pop("distilbert.embeddings.token_type_embeddings.weight")
    positions = "distilbert.embeddings.position_embeddings.weight"
    renamed[positions] = renamed[positions] + segments[0]
    return renamed


def _name(network: Any) -> str:
    return f"{type(network).__name__} {network.config.name_or_path or 'from its config'!r}"
