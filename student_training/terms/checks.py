"""Whether a target and a student can serve a term; messages say what differs and what to do, and lack the key of the term."""

from __future__ import annotations

from collections.abc import Iterable

from storage.config.terms import AttentionTerm, EmbeddingsTerm, HiddenStatesTerm, RelationsTerm, SoftLabelsTerm
from storage.errors import ConfigError
from storage.specs import AttentionSpec, EmbeddingsSpec, HiddenStatesSpec, RelationsSpec, SoftLabelsSpec
from student_training.terms.interface import StudentShape

HEADS_OF_POSITIONS = {"view": "sequence_classifier", "masked": "masked_lm", "all": "masked_lm", "next": "causal_lm"}
_DRAWN = ("sampled", "threshold")


def check_soft_labels(term: SoftLabelsTerm, *, spec: SoftLabelsSpec, shape: StudentShape) -> str:
    """Return the loss that is meant.

    Raises:
        ConfigError: labels of other positions or classes than the student's logits, or a loss that would be biased or infinite.
    """
    head = HEADS_OF_POSITIONS[spec.positions]
    if shape.kind != head and not (shape.of_pictures and spec.positions == "view"):
        raise ConfigError(
            f"the labels are {_words(spec.positions)}, which a {head} predicts; the student is a {shape.kind}. Set "
            f"training.student.head: {head}, or label other positions"
        )
    require_classes(shape, num_classes=spec.num_classes)
    drawn = spec.codec.kind in _DRAWN
    loss = term.loss or ("cross_entropy" if drawn else "kl")
    if drawn and loss == "reverse_kl":
        raise ConfigError(
            f"labels of codec {spec.codec.kind} were drawn at random, and reverse_kl, which is not linear in them, would be "
            "biased; use cross_entropy, or label with another codec"
        )
    if loss == "cross_entropy" and not drawn:
        raise ConfigError(
            f"cross_entropy is for labels that were drawn at random: it would drop the rest mass of codec {spec.codec.kind}; "
            "use kl, or label with codec sampled or threshold"
        )
    if drawn and term.temperature != spec.generation_temperature:
        raise ConfigError(
            f"temperature is {term.temperature:g} and the labels were drawn at {spec.generation_temperature:g}: changing it "
            f"afterwards would bias them; set temperature: {spec.generation_temperature:g}, or label at {term.temperature:g}"
        )
    if loss == "reverse_kl" and term.rest == "renormalize":
        raise ConfigError("reverse_kl is infinite where classes are left out; use rest: uniform, mean or bucket")
    return loss


def require_classifier(shape: StudentShape) -> None:
    """Refuse a student that does not classify whole samples.

    Raises:
        ConfigError: it does not.
    """
    if shape.kind != "sequence_classifier" and not shape.of_pictures:
        raise ConfigError(
            f"it compares classes of sequences, and the student is a {shape.kind}; use training.student.head: sequence_classifier"
        )


def check_hidden_states(term: HiddenStatesTerm, *, spec: HiddenStatesSpec, shape: StudentShape) -> None:
    """Check layers and widths.

    Raises:
        ConfigError: layers that are not there, or widths that differ without a projection.
    """
    if not shape.width:
        raise ConfigError(f"the student shows no hidden states; use {_showing_layers(shape)}, or drop the term")
    _check_layers(term.layers, stored=spec.layers, shape=shape, first=0)
    if term.projection == "none" and spec.width != shape.width:
        raise ConfigError(
            f"the teacher's hidden states have width {spec.width} and the student's {shape.width}; set projection: shared or "
            "per_layer, or give the student the teacher's width"
        )


def check_attention(term: AttentionTerm, *, spec: AttentionSpec, shape: StudentShape) -> None:
    """Check layers, heads and mask.

    Raises:
        ConfigError: attention that cannot be compared head by head.
    """
    _require_attention(shape)
    _check_layers(term.layers, stored=spec.layers, shape=shape, first=1)
    _check_vectors(("query", "key"), spec=spec)
    if spec.num_heads != shape.num_heads:
        raise ConfigError(
            f"the teacher has {spec.num_heads} attention heads and the student {shape.num_heads}; give the student as many "
            f"({'kwargs.num_heads' if shape.of_pictures else 'num_attention_heads'}), or use a term of relations, which needs no "
            "equal heads"
        )
    if spec.causal != shape.causal:
        raise ConfigError(
            f"the teacher's attention is {'' if spec.causal else 'not '}causal and the student's is "
            f"{'' if shape.causal else 'not '}causal, so that their tokens see different ones; use a student of the same kind"
        )


def relation_heads(term: RelationsTerm, *, spec: AttentionSpec | RelationsSpec, shape: StudentShape) -> int:
    """Return the relation heads, having checked layers and widths.

    Raises:
        ConfigError: relations that cannot be compared.
    """
    _require_attention(shape)
    stored = (spec.layer,) if isinstance(spec, RelationsSpec) else spec.layers
    _check_layers(term.layers, stored=stored, shape=shape, first=1)
    _check_vectors(term.vectors, spec=spec)
    if isinstance(spec, RelationsSpec):
        if term.num_relation_heads not in (None, spec.num_relation_heads):
            raise ConfigError(
                f"num_relation_heads is {term.num_relation_heads} and the stored relations have {spec.num_relation_heads}; "
                "leave it out, or label query, key and value vectors (target kind attention), which can be cut anew"
            )
        num_heads = spec.num_relation_heads
    else:
        num_heads = term.num_relation_heads or spec.num_heads
        if shape.causal != spec.causal:
            raise ConfigError("one of teacher and student is causal and the other is not; use a student of the same kind")
    for kind in term.vectors:
        heads = shape.num_heads if kind == "query" else shape.num_key_value_heads
        widths = {"student": heads * shape.head_width}
        if isinstance(spec, AttentionSpec):
            widths["teacher"] = spec.tensors[f"{kind}.{term.layers[0][0]}"]
        for whose, width in widths.items():
            if width % num_heads:
                raise ConfigError(
                    f"the {whose}'s {kind} vectors of width {width} cannot be cut into {num_heads} relation heads; choose "
                    "num_relation_heads that divide it"
                )
    return num_heads


def check_embeddings(term: EmbeddingsTerm, *, spec: EmbeddingsSpec, shape: StudentShape) -> None:
    """Check widths.

    Raises:
        ConfigError: they differ and there is no projection.
    """
    if term.projection == "none" and spec.width != shape.embedding_width:
        raise ConfigError(
            f"the teacher's embeddings have width {spec.width} and the student's {shape.embedding_width}; set projection: "
            "shared, or give the student the teacher's width"
        )


def require_classes(shape: StudentShape, *, num_classes: int) -> None:
    """Refuse labels over other classes than the student's.

    Raises:
        ConfigError: they are.
    """
    if shape.num_classes != num_classes:
        what = "tokens of the vocabulary" if shape.kind.endswith("lm") else "classes"
        keys = "num_classes" if shape.of_pictures else "num_classes and vocab_size"
        raise ConfigError(
            f"the labels are over {num_classes:,} {what} and the student has {shape.num_classes:,}: they cannot be compared; "
            f"leave {keys} of training.student to the labels"
        )


def _showing_layers(shape: StudentShape) -> str:
    return "a vision transformer of timm (vit, deit)" if shape.of_pictures else "training.student.kind: transformers"


def _require_attention(shape: StudentShape) -> None:
    if not shape.num_heads:
        named = "" if shape.of_pictures else " with an architecture that looks its attention up by name (bert, gpt2, llama, ...)"
        raise ConfigError(f"the student shows no attention vectors; use {_showing_layers(shape)}{named}, or drop the term")


def _check_layers(pairs: Iterable[tuple[int, int]], *, stored: tuple[int, ...], shape: StudentShape, first: int) -> None:
    for teacher_layer, student_layer in pairs:
        if teacher_layer not in stored:
            raise ConfigError(
                f"layers has the teacher's layer {teacher_layer}, and the target holds layers {', '.join(map(str, stored))}; "
                "add it to the target's layers and label again, or choose one of these"
            )
        if not first <= student_layer <= shape.num_layers:
            raise ConfigError(
                f"layers has the student's layer {student_layer}, and its layers are {first} to {shape.num_layers}; choose one "
                "of these, or a deeper student"
            )


def _check_vectors(kinds: Iterable[str], *, spec: AttentionSpec | RelationsSpec) -> None:
    missing = [kind for kind in kinds if kind not in spec.vectors]
    if missing:
        raise ConfigError(
            f"the target holds {', '.join(spec.vectors)} and not {', '.join(missing)}; add it to the target's vectors and label "
            "again"
        )


def _words(positions: str) -> str:
    return {
        "view": "of whole sequences",
        "masked": "of masked tokens",
        "all": "of every token",
        "next": "of next tokens",
    }[positions]
