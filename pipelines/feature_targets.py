"""From targets of vectors in a config to their specs: what the teacher decides is filled in, what it cannot give refused."""

from __future__ import annotations

from pipelines.teachers.outputs import FeatureShape, check_layers
from pipelines.teachers.text_base import NetworkShape
from storage.block_bounds import MAX_BLOCK_VALUE_ROWS
from storage.config.targets import AttentionConfig, EmbeddingsConfig, HiddenStatesConfig, RelationsConfig
from storage.errors import ConfigError, TeacherError
from storage.specs import AttentionSpec, EmbeddingsSpec, FeaturesSpec, Float16Codec, HiddenStatesSpec, RelationsSpec

FeaturesConfig = HiddenStatesConfig | AttentionConfig | RelationsConfig | EmbeddingsConfig


def resolve_features(
    target: FeaturesConfig,
    *,
    shape: FeatureShape,
    max_tokens: int,
    head_sha256: str | None,
    name: str,
    key: str,
    why_no_head: str = "",
) -> FeaturesSpec:
    """Return the spec of a target of vectors.

    Args:
        max_tokens: most tokens a sample has.
        head_sha256: digest of the teacher's head; None where it cannot be stored.
        name: of the teacher, for messages.
        key: of the target in the config, for messages.
        why_no_head: why the head cannot be stored and what to do, where that is known.

    Raises:
        ConfigError: heads that do not divide the vectors, a head of another layer or of tokens that are not kept, more pairs
            than a block holds, or layers whose tokens see less than a sample.
        TeacherError: a layer that the teacher does not have, or vectors that it does not give.
    """
    match target:
        case HiddenStatesConfig():
            _check_layers(target.layers, shape=shape, of="hidden_states", name=name, key=key)
            assert shape.width is not None
            head = None
            if target.head:
                _check_head(target, shape=shape, name=name, key=key)
                head = _stored_head(head_sha256, name=name, key=key, why_not=why_no_head)
            return HiddenStatesSpec(
                layers=target.layers, tokens=target.tokens, width=shape.width, codec=target.codec, head_sha256=head
            )
        case AttentionConfig():
            _check_layers(target.layers, shape=shape, of="attention", name=name, key=key)
            assert shape.attention is not None
            _check_windows(target, shape=shape, max_tokens=max_tokens, name=name, key=key)
            return AttentionSpec(
                layers=target.layers,
                vectors=target.vectors,
                num_heads=shape.attention.num_heads,
                num_key_value_heads=shape.attention.num_key_value_heads,
                head_width=shape.attention.head_width,
                causal=shape.attention.causal,
                codec=target.codec,
            )
        case RelationsConfig():
            return _relations(target, shape=shape, max_tokens=max_tokens, name=name, key=key)
        case EmbeddingsConfig():
            if shape.embedding_width is None:
                raise TeacherError(f"{key}.kind: embeddings, but teacher {name} gives none; choose another target")
            return EmbeddingsSpec(width=shape.embedding_width, codec=target.codec)


def _check_layers(layers: tuple[int, ...], *, shape: FeatureShape, of: str, name: str, key: str) -> None:
    try:
        check_layers(layers, shape=shape, of=of, name=name)
    except TeacherError as error:
        raise TeacherError(f"{key}: {error}") from error


def _check_windows(target: AttentionConfig, *, shape: FeatureShape, max_tokens: int, name: str, key: str) -> None:
    """Refuse queries with keys of layers whose tokens do not see all of a sample: maps rebuilt of them would be others.

    Raises:
        ConfigError: the layers, and what else could be chosen.
    """
    if not {"query", "key"} <= set(target.vectors):
        return
    windows = {layer: shape.attention_windows[layer - 1] for layer in target.layers if shape.attention_windows}
    short = {layer: window for layer, window in windows.items() if window is not None and window < max_tokens}
    if not short:
        return
    listed = ", ".join(f"{layer} ({window})" for layer, window in short.items())
    whole = [str(i) for i, window in enumerate(shape.attention_windows, start=1) if window is None or window >= max_tokens]
    choose = f"choose of layers {', '.join(whole)}, " if whole else ""
    raise ConfigError(
        f"{key}.layers: a token of teacher {name} sees only those less than so many places away in layers {listed}, and "
        f"views.length is {max_tokens}: attention maps rebuilt from queries and keys would not be the teacher's; {choose}give "
        f"views.length: {min(short.values())}, or a target of relations, which are the same whatever tokens see"
    )


def _relations(target: RelationsConfig, *, shape: FeatureShape, max_tokens: int, name: str, key: str) -> RelationsSpec:
    _check_layers((target.layer,), shape=shape, of="attention", name=name, key=key)
    heads = shape.attention
    assert heads is not None
    num_heads = target.num_relation_heads or heads.num_heads
    for vector in target.vectors:
        width = (heads.num_heads if vector == "query" else heads.num_key_value_heads) * heads.head_width
        if width % num_heads:
            raise ConfigError(
                f"{key}.num_relation_heads: {num_heads} heads do not divide the {width} numbers of a {vector}; give a divisor"
            )
    if max_tokens * (max_tokens + 1) // 2 >= MAX_BLOCK_VALUE_ROWS:
        raise ConfigError(
            f"{key}.kind: relations of {max_tokens} tokens with each other are more rows than a block holds; take shorter "
            "samples, or store attention, from which they are rebuilt"
        )
    return RelationsSpec(layer=target.layer, vectors=target.vectors, num_relation_heads=num_heads, codec=Float16Codec())


def _check_head(target: HiddenStatesConfig, *, shape: FeatureShape, name: str, key: str) -> None:
    """Refuse hidden states that are not those a head reads."""
    last = shape.num_layers
    if target.layers[-1] != last:
        raise ConfigError(
            f"{key}.head: true, but a head reads layer {last}, and layers end with {target.layers[-1]}; add layer {last}, or "
            "give head: false"
        )
    if isinstance(shape, NetworkShape) and shape.per_token and target.tokens != "all":
        raise ConfigError(
            f"{key}.head: true, but the head of teacher {name} reads every token, and tokens: {target.tokens} leaves most of "
            "them out, so that no logits could be made; give tokens: all, or head: false"
        )


def _stored_head(head_sha256: str | None, *, name: str, key: str, why_not: str) -> str:
    if head_sha256 is None:
        reason = why_not or f"the head of teacher {name} cannot be stored; give head: false, or soft_labels"
        raise ConfigError(f"{key}.head: true, but {reason}")
    return head_sha256
