"""Specs in a few words, for plans and catalogues."""

from __future__ import annotations

from storage.specs import (
    AnyView,
    AttentionSpec,
    CompactCodec,
    EmbeddingsSpec,
    FeatureCodecSpec,
    Float16Codec,
    HiddenStatesSpec,
    ImportedView,
    MaskedTokensView,
    RelationsSpec,
    SampledCodec,
    SoftLabelsSpec,
    TargetSpec,
    ThresholdCodec,
    TokensView,
)

_ROWS = {"view": "", "masked": " at masked tokens", "all": " at every token", "next": " of every next token"}


def view_words(view: AnyView) -> str:
    """Return what a view is."""
    match view:
        case ImportedView():
            epochs = f"{view.epochs[0]} to {view.epochs[-1]}" if len(view.epochs) > 1 else f"{view.epochs[0]}"
            size = f"{view.size[0]}x{view.size[1]}"
            return f"{view.kind} {size}, {view.layout} files of epoch {epochs}: cannot be rendered here"
        case TokensView():
            return f"{view.kind}, {view.layout} to {view.length}, vocabulary of {view.vocabulary_size:,}"
        case MaskedTokensView():
            words = ", whole words" if view.whole_words else ""
            masked = f"{view.mask_share:.0%} masked{words}"
            return f"{view.kind}, {view.layout} to {view.length}, {masked}, vocabulary of {view.vocabulary_size:,}"
        case _:
            return f"{view.kind} {view.size[0]}x{view.size[1]}, {view.interpolation}"


def target_words(target: TargetSpec) -> str:
    """Return what a target keeps."""
    match target:
        case SoftLabelsSpec():
            temperature = f", temperature {target.generation_temperature:g}" if target.generation_temperature != 1 else ""
            return f"{_selection(target)} of {target.num_classes:,} classes{_ROWS[target.positions]}{temperature}"
        case HiddenStatesSpec():
            head = ", with the teacher's head" if target.head_sha256 else ""
            tokens = {"all": "every token", "first": "the first token", "mean": "the mean of tokens"}[target.tokens]
            return f"hidden states of {_layers(target.layers)}, {tokens}, width {target.width}, {_codec(target.codec)}{head}"
        case AttentionSpec():
            vectors = ", ".join(target.vectors)
            return (
                f"{vectors} of {_layers(target.layers)}, {target.num_heads} heads of {target.head_width}, {_codec(target.codec)}"
            )
        case RelationsSpec():
            vectors = ", ".join(target.vectors)
            return f"relations of {vectors} of layer {target.layer}, {target.num_relation_heads} heads, {_codec(target.codec)}"
        case EmbeddingsSpec():
            return f"embeddings of width {target.width}, {_codec(target.codec)}"


def _selection(target: SoftLabelsSpec) -> str:
    codec = target.codec
    match codec:
        case SampledCodec():
            return f"{codec.draws} random draws"
        case ThresholdCodec():
            return f"random threshold at {codec.levels} levels"
        case CompactCodec():
            kept = f"top {target.k}" if target.k is not None else "quality level"
            return f"{kept}, compact codec at {codec.levels} levels,"
        case _:
            return f"top {target.k}, {codec.kind} codec," if target.k is not None else f"{codec.kind} codec,"


def _layers(layers: tuple[int, ...]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def _codec(codec: FeatureCodecSpec) -> str:
    if isinstance(codec, Float16Codec):
        return "float16"
    return f"int8 in groups of {codec.group}" if codec.group else "int8"
