"""Turn a loaded network into a teacher of texts: hash its weights, place it, and prove on one short batch what it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.teachers.assembly import check_range
from pipelines.teachers.attention_capture import recorded
from pipelines.teachers.base import describe
from pipelines.teachers.devices import resolve_device
from pipelines.teachers.outputs import NO_HIDDEN, RawOutputs, Wanted
from pipelines.teachers.text_base import PROBE_TOKENS, NetworkShape, TextNetwork, TextTeacher, new_lock, probe
from pipelines.teachers.text_networks import PlainNetwork, TransformersNetwork, last_linear, pad_token_of
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
_SAME_SHAPE = 0.1
"""Share of it that is left where shapes are the same: experts that gather tokens of a batch may add up in another order."""


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
            sees_later = positions == "next" and _sees_later(network, raw=raw, probe=(ids, mask), precision=config.precision)
    except TeacherError:
        raise
    except Exception as error:
        raise TeacherError(
            f"teacher {config.name} failed on a first batch of {len(ids)} sequences of {PROBE_TOKENS} tokens "
            f"({config.precision}, {device}): {describe(error)}. It must take (input_ids, attention_mask) and give logits"
        ) from error
    _check_logits(logits, raw=raw, config=config, tokenizer=facts, per_token=per_token, num_sequences=len(ids))
    if sees_later:
        raise TeacherError(
            f"teacher {config.name} ({type(module).__name__}) is to label next tokens, and its tokens see later ones: it would "
            "read what it is to predict. Set teacher.kind: masked_lm, or, of a model that was trained as a decoder, "
            "teacher.kwargs: {is_decoder: true}"
        )
    pad_token_id = _pad_token(module, tokenizer=facts)
    cannot_pad = not per_token and pad_token_of(module) not in (None, pad_token_id)
    if cannot_pad and _reads_padding(network, probe=(ids, mask), pad_token_id=pad_token_id, precision=config.precision):
        raise TeacherError(
            f"teacher {config.name} tells where a text ends by pad_token_id {pad_token_of(module)} of its config, which is no "
            "token of it: it would classify the padding behind. Set the one that it was trained with, "
            "teacher.kwargs: {pad_token_id: ...}"
        )
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
        why_no_soft_labels="" if per_token else _why_no_soft_labels(module, num_outputs=int(logits.shape[-1])),
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
        pad_token_id=pad_token_id,
        device=device,
        dtype=dtype,
        network=network,
        lock=new_lock(),
    )


def _pad_token(module: torch.nn.Module, *, tokenizer: TokenizerFacts) -> int:
    """Return the model's own padding token, which need not be its tokenizer's, or else any that it takes."""
    known = _num_embeddings(module) or tokenizer.vocabulary_size
    candidates = (pad_token_of(module), tokenizer.pad_id, 0)
    return next(token for token in candidates if token is not None and 0 <= token < known)


def _reads_padding(network: TextNetwork, *, probe: tuple[torch.Tensor, torch.Tensor], pad_token_id: int, precision: str) -> bool:
    """Return whether a classifier says something else of a sequence when padding follows.

    Those of causal models classify the last token that is not their config's `pad_token_id`, which may be none that they take.
    """
    import torch

    ids, mask = probe
    there = mask[1:].bool()
    with torch.inference_mode():
        alone = network.run(ids[1:][there][None], mask[1:][there][None], wanted=Wanted(labels=True)).logits
        padded = network.run(ids[1:].where(there, pad_token_id), mask[1:], wanted=Wanted(labels=True)).logits
    assert alone is not None
    assert padded is not None
    return bool((alone - padded).abs().max() > _SPLIT_TOLERANCE[precision] * alone.abs().max().clamp(min=1e-6))


def _why_no_soft_labels(module: torch.nn.Module, *, num_outputs: int) -> str:
    """Return why the softmax of a classifier's logits is nothing that it means; empty where it is."""
    problem = getattr(getattr(module, "config", None), "problem_type", None)
    if problem == "multi_label_classification":
        return "a text has any number of its classes at once (problem_type of its config), and soft labels have one between them"
    if num_outputs == 1 or problem == "regression":
        return "it gives a number and no classes, whose probability would always be 1"
    return ""


def _num_embeddings(module: torch.nn.Module) -> int | None:
    get = getattr(module, "get_input_embeddings", None)
    found: int | None = getattr(get() if callable(get) else None, "num_embeddings", None)
    return found


def _check_embedding(module: torch.nn.Module, *, tokenizer: TokenizerFacts, name: str) -> None:
    known = _num_embeddings(module)
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


def _sees_later(network: TextNetwork, *, raw: RawOutputs, probe: tuple[torch.Tensor, torch.Tensor], precision: str) -> bool:
    """Return whether another last token changes what becomes of the first.

    Args:
        raw: what the network gave of the probe.
    """
    ids, mask = probe
    other_ids = ids.clone()
    other_ids[0, -1] = ids[0, 0]
    other = network.run(other_ids, mask, wanted=Wanted(labels=True))
    first, changed = ((one.logits if one.logits is not None else _states(one))[0, 0].float().nan_to_num() for one in (raw, other))
    tolerance = _SAME_SHAPE * _SPLIT_TOLERANCE[precision]
    return bool((first - changed).abs().max() > tolerance * first.abs().max().clamp(min=1e-6))


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
