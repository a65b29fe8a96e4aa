"""From a config and the facts of a teacher of texts to the requests that are hashed."""

from __future__ import annotations

from pipelines.block_checks import check_blocks
from pipelines.feature_targets import resolve_features
from pipelines.teacher_memo import TextTeacherFacts
from storage.alignment import why_one_token_off
from storage.config import ExperimentConfig
from storage.config.labels import MaskedTokensViewsConfig, TokensViewsConfig
from storage.config.targets import SoftLabelsConfig
from storage.errors import ConfigError
from storage.specs import MaskedTokensView, RequestSpec, SoftLabelsSpec, TargetSpec, TextViewSpec
from storage.text.views import view_of


def resolve_text_requests(config: ExperimentConfig, *, facts: TextTeacherFacts) -> dict[str, RequestSpec]:
    """Return what is asked for, by the names of targets.

    Raises:
        ConfigError: a target or the views do not fit the teacher or its tokenizer.
    """
    view = resolve_text_view(config, facts=facts)
    requests = {}
    for name, target in config.named_targets.items():
        key = "target" if config.targets is None else f"targets.{name}"
        if isinstance(target, SoftLabelsConfig):
            spec: TargetSpec = _soft_labels(target, facts=facts, view=view, key=key)
        else:
            spec = resolve_features(
                target,
                shape=facts.shape,
                max_tokens=view.length,
                head_sha256=facts.head_sha256,
                why_no_head=facts.why_no_head,
                name=facts.spec.architecture,
                key=key,
            )
        check_blocks(spec, view=view, key=key)
        requests[name] = RequestSpec(teacher=facts.spec, view=view, target=spec)
    return requests


def resolve_text_view(config: ExperimentConfig, *, facts: TextTeacherFacts) -> TextViewSpec:
    """Return the view spec of texts.

    Raises:
        ConfigError: sequences longer than the teacher takes, or a tokenizer that cannot do what the views ask for.
    """
    views, tokenizer = config.views, facts.tokenizer
    assert isinstance(views, TokensViewsConfig | MaskedTokensViewsConfig)
    if facts.shape.max_length is not None and views.length > facts.shape.max_length:
        raise ConfigError(
            f"views.length: {views.length} tokens are more than the teacher takes; give at most {facts.shape.max_length}"
        )
    return view_of(views, tokenizer=tokenizer, tokenizer_key="teacher.tokenizer")


def _soft_labels(target: SoftLabelsConfig, *, facts: TextTeacherFacts, view: TextViewSpec, key: str) -> SoftLabelsSpec:
    positions = target.positions or facts.positions
    if facts.shape.per_token and positions == "view":
        raise ConfigError(
            f"{key}.positions: view, but a {facts.spec.kind} labels tokens; give masked, next or all, or leave it out"
        )
    if not facts.shape.per_token and positions != "view":
        raise ConfigError(f"{key}.positions: {positions}, but a {facts.spec.kind} labels whole sequences; leave positions out")
    # A factory says which rows its labels have, and thereby which of the two kinds of language models it is.
    why_off = why_one_token_off("causal_lm" if facts.positions == "next" else "masked_lm", positions=positions)
    if facts.shape.per_token and why_off is not None:
        of_teacher = "next" if facts.positions == "next" else "masked or all"
        raise ConfigError(
            f"{key}.positions: {positions}, but {why_off}, so that every label would be one token off; give {of_teacher}, or "
            "leave positions out"
        )
    if positions == "masked" and not isinstance(view, MaskedTokensView):
        raise ConfigError(f"{key}.positions: masked, but views.kind: {view.kind} masks nothing; give views.kind: masked_tokens")
    if facts.shape.why_no_soft_labels:
        raise ConfigError(
            f"{key}.kind: soft_labels, but of teacher {facts.spec.architecture} {facts.shape.why_no_soft_labels}; choose "
            "hidden_states or embeddings"
        )
    num_classes = facts.spec.num_classes
    if target.k is not None and target.k > num_classes:
        what = "tokens of vocabulary" if facts.shape.per_token else "classes"
        raise ConfigError(
            f"{key}.k: {target.k} is larger than the teacher's {num_classes} {what}; give at most {num_classes}, or k: null for "
            "a quality level"
        )
    return SoftLabelsSpec(
        num_classes=num_classes,
        k=target.k,
        codec=target.codec,
        generation_temperature=target.generation_temperature,
        positions=positions,
    )
