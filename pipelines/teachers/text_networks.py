"""Forward passes of text teachers: models of transformers, and modules of your own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.teachers.attention_capture import recorded
from pipelines.teachers.heads import frozen_head
from pipelines.teachers.outputs import RawOutputs, Wanted
from pipelines.teachers.text_base import TextTeacher
from storage.errors import TeacherError
from storage.heads import FrozenHead

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TransformersNetwork:
    """A model of transformers with a head: of language models, or of sequence classifiers.

    Attributes:
        reads_attention: whether its attention vectors can be collected.
        splits: whether the head can run by itself: logits of a whole batch over a large vocabulary would fill the device.
        head_layer: of a classifier, the last linear layer, whose input is the embedding.
    """

    module: Any
    per_token: bool
    reads_attention: bool
    splits: bool
    head_layer: Any = field(default=None, repr=False)

    def run(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, wanted: Wanted) -> RawOutputs:
        """See `TextNetwork.run`."""
        ask: dict[str, Any] = {"attention_mask": attention_mask, "return_dict": True}
        # Caches of keys and values are for generating; encoders do not know the argument.
        if getattr(self.module.config, "use_cache", None):
            ask["use_cache"] = False
        if wanted.hidden or (wanted.embedding and self.per_token):
            ask["output_hidden_states"] = True
        seen: list[torch.Tensor] = []
        with contextlib.ExitStack() as stack:
            attention = stack.enter_context(recorded(wanted.attention_layers)) if wanted.attention_layers else None
            if wanted.embedding and not self.per_token:
                hook = self.head_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
                stack.callback(hook.remove)
            if self.per_token and self.splits:
                outputs = getattr(self.module, self.module.base_model_prefix)(input_ids, **ask)
                states, logits = outputs[0], None
            else:
                outputs = self.module(input_ids, **ask)
                states, logits = None, outputs.logits
        hidden = tuple(outputs.hidden_states) if ask.get("output_hidden_states") else ()
        embedding = None
        if wanted.embedding:
            embedding = _mean(hidden[-1], attention_mask) if self.per_token else self._as_classified(seen[0], input_ids)
        return RawOutputs(
            logits=logits,
            states=states,
            hidden=hidden,
            attention=None if attention is None else dict(attention),
            embedding=embedding,
        )

    def _as_classified(self, states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Return [batch, width]: what a head reads, of one token where it reads every one (classifiers of causal models).

        These models take the last token that is not the padding token; a text of its own may end with that.
        """
        import torch

        if states.ndim == 2:
            return states
        rows, pad = torch.arange(len(states), device=states.device), pad_token_of(self.module)
        if pad is None:
            return states[rows, -1]
        numbers = torch.arange(input_ids.shape[1], device=states.device)
        return states[rows, (numbers * (input_ids != pad)).argmax(dim=1)]

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Run the whole model with its body replaced by the states it gave: the head, and all that is done to its output."""
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        body = getattr(self.module, self.module.base_model_prefix)

        def given(*args: Any, **kwargs: Any) -> BaseModelOutputWithPastAndCrossAttentions:
            del args, kwargs
            return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states[None])

        body.forward = given
        try:
            dummy = torch.zeros((1, len(states)), dtype=torch.int64, device=states.device)
            logits: torch.Tensor = self.module(dummy, return_dict=True).logits[0]
        finally:
            del body.forward
        return logits


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlainNetwork:
    """A module of your own: `module(input_ids, attention_mask)` gives logits, or a mapping with `logits` and further entries.

    Entries: `hidden_states`, a sequence of [batch, tokens, width] from what enters the first layer on; `embedding`, [batch,
        width].
    """

    module: Any

    def run(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, wanted: Wanted) -> RawOutputs:
        """See `TextNetwork.run`."""
        del wanted
        given = self.module(input_ids, attention_mask)
        found: Mapping[str, Any] = given if isinstance(given, Mapping) else {"logits": given}
        return RawOutputs(
            logits=found["logits"],
            hidden=tuple(found.get("hidden_states") or ()),
            embedding=found.get("embedding"),
        )

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Never asked for: `run` gives logits."""
        raise NotImplementedError


def _mean(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return float32 [batch, width], the mean over the tokens that are there."""
    import torch

    there = attention_mask[:, :, None].to(torch.float32)
    # Padding may hold anything, NaN too, which times 0 is no 0.
    kept = torch.where(there > 0, states.float(), 0.0)
    return kept.sum(dim=1) / there.sum(dim=1)


def pad_token_of(module: Any) -> int | None:
    """Return the padding token of a model of transformers, by which its classifiers tell where a text ends; None: it has none."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    found: int | None = getattr(config, "pad_token_id", None)
    return found


def last_linear(module: torch.nn.Module, *, num_outputs: int) -> torch.nn.Module | None:
    """Return the last linear layer with so many outputs, or None."""
    import torch

    found: Iterator[torch.nn.Module] = (
        layer for layer in module.modules() if isinstance(layer, torch.nn.Linear) and layer.out_features == num_outputs
    )
    last = None
    for layer in found:
        last = layer
    return last


def find_head(teacher: TextTeacher) -> FrozenHead:
    """Return a teacher's head as data.

    Raises:
        TeacherError: it is none that can be stored; the message says why, and what to do.
    """
    if not isinstance(teacher.network, TransformersNetwork):
        raise TeacherError(
            f"the head of teacher {teacher.name} is inside a module of your own, which is not taken apart. Leave target.head "
            "out, or choose soft_labels as target"
        )
    with teacher.lock:
        return frozen_head(teacher.network.module, num_outputs=teacher.spec.num_classes, name=teacher.name)


def head_of(teacher: TextTeacher) -> FrozenHead | None:
    """Return a teacher's head as data; None where it is none that can be stored."""
    with contextlib.suppress(TeacherError):
        return find_head(teacher)
    return None
