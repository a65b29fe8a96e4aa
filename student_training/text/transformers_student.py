"""Students that are transformers networks: logits at chosen tokens only, hidden states, attention vectors."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from student_training.terms.interface import Positions, StudentOutput, StudentShape, Wants, mean_of_tokens
from student_training.text.attention_capture import ATTENTION, capturing, seeing_windows
from student_training.text.interface import TextStudent

_SAME = 1e-5
"""Outputs in float32 that differ by less than this share of the largest are the same."""

StudentKind = Literal["masked_lm", "causal_lm", "sequence_classifier"]


class TransformersStudent(TextStudent):
    """Any transformers network with a language model's or a sequence classifier's head.

    Attributes:
        network: the network; `save_pretrained` exports it.
    """

    def __init__(self, network: PreTrainedModel, *, kind: StudentKind, num_classes: int, causal: bool | None = None) -> None:
        """Take a network.

        Args:
            causal: whether tokens see no later ones; None: it is looked at, which needs a network that is not quantised, as then
                all tokens of a batch share a grid.
        """
        super().__init__()
        self.network = network
        config = network.config
        width, of_model = int(config.hidden_size), int(config.num_attention_heads)
        # Networks that do not look their attention up by name show no vectors.
        num_heads = of_model if network._supports_sdpa and network._can_set_attn_implementation() else 0
        untyped: Any = network
        head: nn.Module = _classifier(network) if kind == "sequence_classifier" else untyped.get_output_embeddings()
        # In a tuple, so that it is not registered a second time.
        self._head = (head,)
        self.shape = StudentShape(
            kind=kind,
            num_classes=num_classes,
            num_layers=int(config.num_hidden_layers),
            width=width,
            num_heads=num_heads,
            num_key_value_heads=int(getattr(config, "num_key_value_heads", None) or num_heads),
            head_width=int(getattr(config, "head_dim", None) or width // of_model),
            embedding_width=int(head.in_features) if isinstance(head, nn.Linear) and kind == "sequence_classifier" else width,
            causal=is_causal(network) if causal is None else causal,
            attention_windows=_attention_windows(network) if num_heads else (),
        )

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor, wants: Wants | None = None) -> StudentOutput:
        """Return what is wanted of padded sequences; padding changes nothing.

        Args:
            input_ids: int64 [B, L].
            attention_mask: bool [B, L].
            wants: which outputs; None: logits everywhere.
        """
        wants = Wants() if wants is None else wants
        classifies = self.shape.kind == "sequence_classifier"
        if wants.vectors and self.network.config._attn_implementation != ATTENTION:
            self.network.set_attn_implementation(ATTENTION)
        if classifies and self.shape.causal:
            # These networks take the last token that is not the padding token for the one that is classified.
            input_ids = input_ids.masked_fill(~attention_mask, self.network.config.pad_token_id)
        needs_head = wants.logits or (wants.embedding and classifies)
        needs_states = wants.hidden_states or (wants.embedding and not classifies)
        network: Any = self.network if needs_head else self.network.base_model
        options = {"use_cache": False} if self.shape.causal else {}
        seen: list[Tensor] = []
        with ExitStack() as stack:
            layers = stack.enter_context(capturing()) if wants.vectors else []
            if needs_head:
                hook = _keeps(seen) if classifies else _reads_at(wants.positions)
                stack.callback(self._head[0].register_forward_pre_hook(hook).remove)
            output = network(
                input_ids=input_ids,
                attention_mask=attention_mask.long(),
                output_hidden_states=needs_states,
                return_dict=True,
                **options,
            )
        embedding: Tensor | None = None
        if wants.embedding and classifies:
            embedding = _last_read(seen[0], input_ids=input_ids, pad_token_id=self.network.config.pad_token_id)
        elif wants.embedding:
            embedding = mean_of_tokens(output.hidden_states[-1], attention_mask=attention_mask)
        return StudentOutput(
            logits=self._logits(output.logits, positions=wants.positions) if wants.logits else None,
            hidden_states=tuple(output.hidden_states) if wants.hidden_states else (),
            vectors={name: _vector(layers, name=name) for name in wants.vectors},
            embedding=embedding,
        )

    def _logits(self, logits: Tensor, *, positions: Positions | None) -> Tensor:
        if positions is not None and self.shape.kind != "sequence_classifier":
            logits = logits[0]
        # The head of a language model may be padded to a round number of tokens.
        return logits if logits.shape[-1] == self.shape.num_classes else logits[..., : self.shape.num_classes]


def _reads_at(positions: Positions | None) -> Any:
    """Return a hook that has a head read hidden states [B, L, H] at some tokens only: [1, P, H]."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if positions is None:
            return None
        return (inputs[0][positions.sequence, positions.position][None], *inputs[1:])

    return hook


def _keeps(seen: list[Tensor]) -> Any:
    """Return a hook that keeps what a head reads."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    return hook


def _last_read(hidden: Tensor, *, input_ids: Tensor, pad_token_id: int) -> Tensor:
    """Return [B, E] of what a head reads: of one that reads all tokens [B, L, E], at the last one that is no padding token."""
    if hidden.ndim == 2:
        return hidden
    numbers = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (numbers * (input_ids != pad_token_id)).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _vector(layers: list[dict[str, Tensor]], *, name: str) -> Tensor:
    kind, _, layer = name.partition(".")
    return layers[int(layer) - 1][kind]


def _classifier(network: PreTrainedModel) -> nn.Module:
    """Return the last linear layer outside the body: what gives the classes."""
    body = {id(module) for module in network.base_model.modules()}
    return [module for module in network.modules() if isinstance(module, nn.Linear) and id(module) not in body][-1]


def is_causal(network: PreTrainedModel) -> bool:
    """Return whether tokens see no later ones, by looking: whether the last token changes what becomes of the first."""
    was_training = network.training
    body: Any = network.base_model.eval()
    with torch.no_grad():
        first, other = (
            body(input_ids=torch.tensor([[1, token]]), attention_mask=torch.ones(1, 2, dtype=torch.long)).last_hidden_state[0, 0]
            for token in (0, 1)
        )
    network.train(was_training)
    # Experts add in an order that depends on which tokens they share.
    return bool((first - other).abs().max() <= _SAME * first.abs().max())


def _attention_windows(network: PreTrainedModel) -> tuple[int | None, ...]:
    """Return by layer how far a token sees, by looking; empty where no layer has a limit."""
    if not any(getattr(network.config, name, None) for name in ("sliding_window", "attention_chunk_size")):
        return ()
    before, was_training = network.config._attn_implementation, network.training
    body: Any = network.base_model.eval()
    network.set_attn_implementation(ATTENTION)
    with torch.no_grad(), seeing_windows() as windows:
        body(input_ids=torch.tensor([[1, 1]]), attention_mask=torch.ones(1, 2, dtype=torch.long))
    network.set_attn_implementation(before)
    network.train(was_training)
    return tuple(windows) if any(windows) else ()
