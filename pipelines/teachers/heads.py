"""The head of a transformers model as data, proven against the model itself before anything is stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt

from pipelines.teachers.base import describe
from storage.errors import TeacherError
from storage.heads import (
    MAX_HEAD_VALUES,
    Activation,
    ActivationName,
    FrozenHead,
    HeadSpec,
    LayerNorm,
    Linear,
    Operation,
    RmsNorm,
    Scale,
    SoftCap,
    apply_activation,
    apply_head,
)

if TYPE_CHECKING:
    import torch

_BERT = "cls.predictions"
_ELECTRA = "generator_predictions"
_LAYOUTS: tuple[tuple[Literal["every", "first"], tuple[str, ...]], ...] = (
    # BERT and those with its head; RoBERTa; DistilBERT; ELECTRA; ALBERT; ModernBERT.
    (
        "every",
        (
            f"{_BERT}.transform.dense",
            f"{_BERT}.transform.transform_act_fn",
            f"{_BERT}.transform.LayerNorm",
            f"{_BERT}.decoder",
        ),
    ),
    ("every", ("lm_head.dense", "=gelu", "lm_head.layer_norm", "lm_head.decoder")),
    ("every", ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector")),
    ("every", (f"{_ELECTRA}.dense", f"{_ELECTRA}.activation", f"{_ELECTRA}.LayerNorm", "generator_lm_head")),
    ("every", ("predictions.dense", "predictions.activation", "predictions.LayerNorm", "predictions.decoder")),
    ("every", ("head.dense", "head.act", "head.norm", "decoder")),
    # Classifiers that read the first token: RoBERTa; ELECTRA; DistilBERT; ModernBERT; BERT; ALBERT.
    ("first", ("classifier.dense", "=tanh", "classifier.out_proj")),
    ("first", ("classifier.dense", "classifier.activation", "classifier.out_proj")),
    ("first", ("pre_classifier", "=relu", "classifier")),
    ("first", ("head.dense", "head.act", "head.norm", "classifier")),
    ("first", ("base_model.pooler.dense", "base_model.pooler.activation", "classifier")),
    ("first", ("base_model.pooler", "base_model.pooler_activation", "classifier")),
    # Causal language models.
    ("every", ("lm_head",)),
    ("every", ("embed_out",)),
)
"""Where the layers of known heads are, in order. An activation that is no module but code there has its name: =gelu."""

_NUM_SEQUENCES, _NUM_TOKENS = 2, 8

_Piece: TypeAlias = "tuple[Operation, dict[str, torch.Tensor]]"


def frozen_head(module: Any, *, num_outputs: int, name: str) -> FrozenHead:
    """Return the head of a transformers language model or classifier, in float32, cut to `num_outputs`.

    The model is run on random tokens, and its head on random hidden states: what was taken apart must give the same logits.

    Args:
        module: on its device; eval mode.
        num_outputs: tokens of the tokenizer, or classes; outputs behind them are padding of the head.
        name: what the config calls it, for messages.

    Raises:
        TeacherError: the head cannot be expressed or is too large, or the model does not run.
    """
    try:
        trials = _trials(module)
    except Exception as error:
        raise TeacherError(f"teacher {name} failed on random tokens: {describe(error)}") from error
    too_large = 0
    for reads, paths in _LAYOUTS:
        pieces = [_piece(module, path) for path in paths]
        if None in pieces:
            continue
        num_values = _num_values(pieces, num_outputs=num_outputs)
        if num_values > MAX_HEAD_VALUES:
            too_large = num_values
            continue
        head = _assemble([*pieces, *_behind(module)], reads=reads, num_outputs=num_outputs)
        if head is not None and all(trial.is_matched_by(head, num_outputs=num_outputs) for trial in trials):
            return head
    if too_large:
        raise TeacherError(
            f"the head of teacher {name} ({type(module).__name__}) has {too_large:,} numbers, and one of at most "
            f"{MAX_HEAD_VALUES:,} can be stored, so that hidden states cannot stand for its logits. Leave target.head out, or "
            "choose soft_labels as target"
        )
    known = "BERT, RoBERTa, DistilBERT, ELECTRA, ALBERT, ModernBERT, and causal models with one linear layer on top"
    raise TeacherError(
        f"the head of teacher {name} ({type(module).__name__}) is none that can be stored as data ({known}), so that hidden "
        "states cannot stand for its logits. Leave target.head out, or choose soft_labels as target"
    )


def _piece(module: Any, path: str) -> _Piece | None:
    """Return a layer as an operation with its tensors; None where there is none, or none that a head may hold."""
    import torch

    if path.startswith("="):
        name: Any = path[1:]
        return Activation(name=name), {}
    layer = module
    for part in path.split("."):
        layer = getattr(layer, part, None)
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if weight is None:
        activation = _activation(layer) if callable(layer) else None
        return None if activation is None else (Activation(name=activation), {})
    tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    if isinstance(layer, torch.nn.Linear):
        return Linear(inputs=layer.in_features, outputs=layer.out_features, bias=bias is not None), tensors
    if isinstance(layer, torch.nn.LayerNorm):
        return LayerNorm(width=weight.shape[0], eps=layer.eps, bias=bias is not None), tensors
    eps = getattr(layer, "variance_epsilon", None)
    return None if eps is None else (RmsNorm(width=weight.shape[0], eps=eps), tensors)


def _activation(function: Any) -> ActivationName | None:
    """Return the activation that a function of numbers is: by what it gives, since libraries have several names for one."""
    import torch

    numbers = torch.linspace(-8, 8, 1001)
    try:
        found = function(numbers).numpy()
    except Exception:
        return None
    for name in get_args(ActivationName):
        # The two forms of gelu differ by 5e-4.
        if np.abs(apply_activation(name, numbers.numpy()) - found).max() < 1e-4:
            return cast("ActivationName", name)
    return None


def _behind(module: Any) -> Iterator[_Piece]:
    """Yield what a causal model does to its logits, as its config says."""
    config = module.config
    for field, power in (("logit_scale", 1), ("logits_scaling", -1)):
        factor = getattr(config, field, None)
        if factor is not None:
            yield Scale(factor=float(factor) ** power), {}
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        yield SoftCap(cap=float(cap)), {}


def _num_values(pieces: list[Any], *, num_outputs: int) -> int:
    """Return how many numbers a head of pieces has, its last linear cut to so many outputs."""
    found = [sum(value.numel() for value in values.values()) for _, values in pieces]
    last = max((index for index, (operation, _) in enumerate(pieces) if isinstance(operation, Linear)), default=None)
    if last is not None:
        outputs = pieces[last][0].outputs
        found[last] = found[last] // outputs * min(outputs, num_outputs)
    return sum(found)


def _assemble(pieces: list[Any], *, reads: Literal["every", "first"], num_outputs: int) -> FrozenHead | None:
    """Return a head of pieces, its last linear cut to so many outputs; None where they do not fit together."""
    last = max((index for index, (operation, _) in enumerate(pieces) if isinstance(operation, Linear)), default=None)
    if last is None or pieces[last][0].outputs < num_outputs:
        return None
    operations: list[Operation] = []
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for index, (operation, values) in enumerate(pieces):
        rows = slice(num_outputs) if index == last else slice(None)
        operations.append(operation.model_copy(update={"outputs": num_outputs}) if index == last else operation)
        tensors |= {f"{index}.{name}": value[rows].detach().float().cpu().numpy() for name, value in values.items()}
    try:
        spec = HeadSpec(reads=reads, operations=tuple(operations))
    except ValueError:
        return None
    return FrozenHead(spec=spec, tensors={name: tensors[name] for name in spec.tensors})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Trial:
    """Hidden states and what the model makes of them.

    Attributes:
        hidden: float32 [sequences, tokens, width].
        logits: float32 [sequences, tokens, outputs], or [sequences, classes].
        tolerance: of a logit, as a share of the largest in its row.
    """

    hidden: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    tolerance: float

    def is_matched_by(self, head: FrozenHead, *, num_outputs: int) -> bool:
        """Return whether a head gives the same logits."""
        if head.spec.width != self.hidden.shape[-1] or self.logits.ndim != (3 if head.spec.reads == "every" else 2):
            return False
        hidden = self.hidden if head.spec.reads == "every" else self.hidden[:, 0]
        rebuilt = apply_head(head, hidden.reshape(-1, head.spec.width))
        wanted = self.logits.reshape(len(rebuilt), -1)[:, :num_outputs]
        return bool((np.abs(rebuilt - wanted) <= self.tolerance * np.abs(wanted).max(axis=1, keepdims=True)).all())


def _trials(module: Any) -> list[_Trial]:
    """Return what the model makes of random tokens, and, where its body can be stood in for, of random hidden states."""
    import torch

    rng = torch.Generator().manual_seed(0)
    num_tokens = module.get_input_embeddings().weight.shape[0]
    input_ids = torch.randint(num_tokens, (_NUM_SEQUENCES, _NUM_TOKENS), generator=rng).to(module.device)
    arguments = {"attention_mask": torch.ones_like(input_ids), "output_hidden_states": True, "return_dict": True}
    tolerance = max(1e-4, 8 * torch.finfo(module.dtype).eps)
    with torch.inference_mode():
        found = module(input_ids, **arguments)
        trials = [_trial(found.hidden_states[-1], found.logits, tolerance=tolerance)]
        if found.logits.ndim == 3:
            states = found.hidden_states[-1]
            # From small to large, so that what bends logits shows.
            sizes = torch.logspace(-1, 1, _NUM_TOKENS)[:, None] * states.float().std().cpu()
            drawn = (sizes * torch.randn(states.shape, generator=rng)).to(states)
            with _body_gives(module, drawn):
                trials.append(_trial(drawn, module(input_ids, **arguments).logits, tolerance=tolerance))
    return trials


def _trial(hidden: torch.Tensor, logits: torch.Tensor, *, tolerance: float) -> _Trial:
    return _Trial(hidden=hidden.float().cpu().numpy(), logits=logits.float().cpu().numpy(), tolerance=tolerance)


@contextlib.contextmanager
def _body_gives(module: Any, states: torch.Tensor) -> Iterator[None]:
    """Put hidden states in the place of those that the model's body gives."""

    def replace(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = states
        return output

    with contextlib.ExitStack() as stack:
        # A model that is an encoder and a decoder in name only calls its decoder itself.
        for body in {module.base_model, getattr(module.base_model, "decoder", module.base_model)}:
            stack.callback(body.register_forward_hook(replace).remove)
        yield
