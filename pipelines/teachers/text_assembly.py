"""Turn a loaded network into a teacher of texts: hash its weights, place it, and prove on one short batch what it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.teachers.assembly import check_range
from pipelines.teachers.attention_capture import recorded
from pipelines.teachers.base import describe
from pipelines.teachers.devices import resolve_device
from pipelines.teachers.outputs import NO_HIDDEN, RawOutputs, Wanted
from pipelines.teachers.text_base import PROBE_TOKENS, NetworkShape, TextNetwork, TextTeacher, new_lock, probe
from pipelines.teachers.text_networks import PlainNetwork, TransformersNetwork, last_linear
from pipelines.teachers.text_tokenizer import require_trained_tokens
from pipelines.teachers.weights import weights_sha256
from storage.config import TeacherConfig
from storage.errors import TeacherError
from storage.specs import Positions, TextTeacherSpec
from storage.text.tokenizer import RECORDED_TOKENIZER

if TYPE_CHECKING:
    import torch

    from storage.text.tokenizer import TextTokenizer, TokenizerFacts

_SPLIT_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Largest difference of a logit, over the largest logit, that another shape of the head's input explains."""


def assemble_text_teacher(
    module: torch.nn.Module,
    *,
    config: TeacherConfig,
    architecture: str,
    tokenizer: TextTokenizer,
    positions: Positions,
    max_length: int | None,
    reads_attention: bool | None,
    class_names: tuple[str, ...] | None,
) -> TextTeacher:
    """Return the teacher made of a module. The weights are hashed as float32, before the cast to the precision.

    Args:
        positions: which rows its labels have by default; "view" of a classifier of sequences.
        reads_attention: whether a model of transformers hands its attention vectors over; None: it is no such model.

    Raises:
        TeacherError: a missing device, weights that do not fit the precision, a forward pass that fails or gives no finite
            logits, a tokenizer with more tokens than the model knows, or another than it was trained with.
    """
    import torch

    kind = config.kind
    assert kind in ("masked_lm", "causal_lm", "sequence_classifier", "text_factory")
    trained_on = getattr(getattr(module, "config", None), RECORDED_TOKENIZER, None)
    require_trained_tokens(trained_on, tokenizer=tokenizer, config=config)
    device = resolve_device(config.device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    module = module.eval().requires_grad_(False).float()
    weights = weights_sha256(module)
    if dtype == torch.float16:
        check_range(module, name=config.name)
    facts = tokenizer.facts
    _check_embedding(module, tokenizer=facts, name=config.name)
    module = module.to(device=device, dtype=dtype)
    ids, mask = probe(facts, device=device)
    per_token = positions != "view"
    if reads_attention is None:
        network: TextNetwork = PlainNetwork(module=module)
    else:
        network = _of_transformers(module, config=config, per_token=per_token, reads_attention=reads_attention, probe=(ids, mask))
    try:
        with torch.inference_mode():
            everything = Wanted(labels=True, hidden=True, embedding=isinstance(network, PlainNetwork) or per_token)
            with recorded(None) as attention:
                raw = network.run(ids, mask, wanted=everything)
            logits = raw.logits if raw.logits is not None else network.head(_states(raw).flatten(0, 1))[None]
    except TeacherError:
        raise
    except Exception as error:
        raise TeacherError(
            f"teacher {config.name} failed on a first batch of {len(ids)} sequences of {PROBE_TOKENS} tokens "
            f"({config.precision}, {device}): {describe(error)}. It must take (input_ids, attention_mask) and give logits"
        ) from error
    _check_logits(logits, raw=raw, config=config, tokenizer=facts, per_token=per_token, num_sequences=len(ids))
    embedding_width = None if raw.embedding is None else int(raw.embedding.shape[-1])
    if isinstance(network, TransformersNetwork) and network.head_layer is not None:
        embedding_width = int(network.head_layer.in_features)
    shape = NetworkShape(
        num_outputs=int(logits.shape[-1]),
        per_token=per_token,
        max_length=max_length,
        num_layers=len(raw.hidden) - 1 if raw.hidden else None,
        width=int(raw.hidden[-1].shape[-1]) if raw.hidden else None,
        why_no_hidden=NO_HIDDEN,
        embedding_width=embedding_width,
    ).with_attention(list(attention.values()), model=type(module).__name__)
    return TextTeacher(
        name=config.name,
        spec=TextTeacherSpec(
            kind=kind,
            architecture=architecture,
            weights_sha256=weights,
            num_classes=facts.vocabulary_size if per_token else int(logits.shape[-1]),
            precision=config.precision,
        ),
        shape=shape,
        positions=positions,
        tokenizer=tokenizer,
        class_names=class_names,
        pad_token_id=_pad_token(module, tokenizer=facts),
        device=device,
        dtype=dtype,
        network=network,
        lock=new_lock(),
    )


def _pad_token(module: torch.nn.Module, *, tokenizer: TokenizerFacts) -> int:
    found = getattr(getattr(module, "config", None), "pad_token_id", None)
    if found is None:
        found = tokenizer.pad_id
    return found if found is not None and 0 <= found < tokenizer.vocabulary_size else 0


def _check_embedding(module: torch.nn.Module, *, tokenizer: TokenizerFacts, name: str) -> None:
    get = getattr(module, "get_input_embeddings", None)
    embedding = get() if callable(get) else None
    known = getattr(embedding, "num_embeddings", None)
    if known is not None and tokenizer.vocabulary_size > known:
        raise TeacherError(
            f"the tokenizer of teacher {name} has {tokenizer.vocabulary_size} tokens, its embedding {known}: token ids from "
            f"{known} on mean nothing to it. Give the tokenizer that it was trained with (teacher.tokenizer)"
        )


def _of_transformers(
    module: Any,
    *,
    config: TeacherConfig,
    per_token: bool,
    reads_attention: bool,
    probe: tuple[torch.Tensor, torch.Tensor],
) -> TransformersNetwork:
    whole = TransformersNetwork(module=module, per_token=per_token, reads_attention=reads_attention, splits=False)
    if not per_token:
        layer = last_linear(module, num_outputs=int(module.config.num_labels))
        return TransformersNetwork(
            module=module, per_token=False, reads_attention=reads_attention, splits=False, head_layer=layer
        )
    split = TransformersNetwork(module=module, per_token=True, reads_attention=reads_attention, splits=True)
    return split if _splits(whole, split, probe=probe, tolerance=_SPLIT_TOLERANCE[config.precision]) else whole


def _splits(
    whole: TransformersNetwork, split: TransformersNetwork, *, probe: tuple[torch.Tensor, torch.Tensor], tolerance: float
) -> bool:
    """Return whether the head gives by itself what the whole model gives."""
    import torch

    ids, mask = probe
    with torch.inference_mode():
        try:
            expected = whole.run(ids, mask, wanted=Wanted(labels=True)).logits
            there = mask.bool()
            found = split.head(_states(split.run(ids, mask, wanted=Wanted(labels=True)))[there])
        except Exception:  # whatever the model's forward pass makes of a body that is not its own
            return False
    if expected is None or found.shape != expected[there].shape:
        return False
    both = torch.stack([expected[there].float(), found.float()])
    finite = both.isfinite()
    if not torch.equal(finite[0], finite[1]):
        return False
    values = torch.where(finite, both, 0.0)
    return bool((values[0] - values[1]).abs().max() <= tolerance * values[0].abs().max().clamp(min=1e-6))


def _states(raw: RawOutputs) -> torch.Tensor:
    assert raw.states is not None
    return raw.states


def _check_logits(
    logits: torch.Tensor,
    *,
    raw: RawOutputs,
    config: TeacherConfig,
    tokenizer: TokenizerFacts,
    per_token: bool,
    num_sequences: int,
) -> None:
    import torch

    expected = 3 if per_token else 2
    if logits.ndim != expected or (raw.logits is not None and len(logits) != num_sequences):
        what = "[batch, tokens, vocabulary]" if per_token else "[batch, classes]"
        raise TeacherError(
            f"teacher {config.name} returned logits of shape {list(logits.shape)}; of its labels they must be {what}. Choose "
            "another teacher.kind, or wrap the model"
        )
    if per_token and logits.shape[-1] < tokenizer.vocabulary_size:
        raise TeacherError(
            f"the head of teacher {config.name} has {logits.shape[-1]} outputs, its tokenizer {tokenizer.vocabulary_size} "
            "tokens: some would have no probability. Give the tokenizer that it was trained with (teacher.tokenizer)"
        )
    if not per_token and config.num_classes is not None and logits.shape[-1] != config.num_classes:
        raise TeacherError(
            f"teacher {config.name} gives {logits.shape[-1]} classes but teacher.num_classes is {config.num_classes}: its labels "
            f"would be of another list of classes. Set teacher.num_classes: {logits.shape[-1]}"
        )
    # Logits of minus infinity are probabilities of 0, which a model may mean.
    first = logits.flatten(0, -2)[0]
    if bool((first.isnan() | (first == torch.inf)).any()) or not bool(first.isfinite().any()):
        raise TeacherError(
            f"teacher {config.name} gives logits that are not finite for a short text in {config.precision}: every label would "
            "be void. Use another precision (teacher.precision: fp32) or check the weights"
        )
