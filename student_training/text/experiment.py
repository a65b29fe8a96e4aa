"""From a config to a training of texts: find the sequences, the targets and the tokenizer."""

from __future__ import annotations

from pathlib import Path

from storage.alignment import why_one_token_off
from storage.cache import Cache
from storage.config import ExperimentConfig, TrainingConfig
from storage.config.labels import MaskedTokensViewsConfig, TokensViewsConfig
from storage.config.source import SourceConfig
from storage.config.training import CachedTargetsConfig
from storage.errors import ConfigError, MismatchError
from storage.label_set import LabelSet
from storage.sources import open_source
from storage.specs import HiddenStatesSpec, SoftLabelsSpec, TargetSpec, TextViewSpec
from storage.streams.text_source_stream import TextSourceStream
from storage.streams.text_stream import TextLabelStream
from storage.text.serving import served_text_target
from storage.text.views import view_of
from student_training.heads import HeadModule
from student_training.job import training_section
from student_training.label_sets import asked_sections, open_label_sets, wants_means
from student_training.terms.reading import targets_read
from student_training.text.job import TextJob
from student_training.text.students import predicts_tokens
from student_training.text.tokenizers import (
    load_student_tokenizer,
    require_first_weights,
    require_named_tokenizer,
    require_teacher_tokenizer,
    require_tokenizer,
    tokenizer_key,
)

_TOKENS_FOLDER = "tokens"


def make_text_job(config: ExperimentConfig) -> TextJob:
    """Return the training of texts that a config describes, everything checked that can be before a network is made.

    Raises:
        ConfigError: a setting cannot be run.
        MismatchError: label sets do not hold what is asked for, or do not go together.
        SourceError: a source cannot be listed.
    """
    training = training_section(config)
    match training.targets:
        case CachedTargetsConfig():
            return _cached_job(config, training)
        case _ if training.targets.kind == "hard":
            return _hard_job(config, training)
        case _:
            raise ConfigError(
                "training.targets.kind: live is for pictures; label the texts with decant label and use kind: cached"
            )


def _cached_job(config: ExperimentConfig, training: TrainingConfig) -> TextJob:
    assert config.cache is not None
    if training.sample_fraction < 1:
        raise ConfigError(
            f"training.sample_fraction: {training.sample_fraction} only works with hard labels; label a smaller source instead"
        )
    cache = Cache.at(config.cache)
    label_sets = open_label_sets(config, training, cache=cache)
    sections = asked_sections(config, training)
    specs = {
        name: served_text_target(label_set, config=config, name=name, sections=sections) for name, label_set in label_sets.items()
    }
    targets = targets_read(training, specs=specs)
    # Tokens lie in every part: with no target to read, any of the label sets gives them.
    names = list(targets) or list(label_sets)[:1]
    used = {name: label_sets[name] for name in names}
    stream = TextLabelStream(used, targets=targets, held_blocks=training.shuffle_window_blocks + 1)
    view = stream.view
    label_set = next(iter(used.values())).manifest.name
    require_named_tokenizer(training, view=view, what=f"label set {label_set!r}")
    require_first_weights(training, view=view, what=f"label set {label_set!r}")
    if config.teacher is not None:
        require_teacher_tokenizer(config.teacher, view=view, label_set=label_set)
    for name, spec in targets.items():
        _require_aligned(used[name], spec=spec)
    labels = [name for name, spec in targets.items() if isinstance(spec, SoftLabelsSpec)]
    means = {name: used[name].class_means() for name in labels if wants_means(training)}
    heads = {
        name: HeadModule(cache.head(spec.head_sha256), teacher_kind=used[name].manifest.request.teacher.kind)
        for name, spec in targets.items()
        if isinstance(spec, HiddenStatesSpec) and spec.head_sha256 is not None and _wants_head(training)
    }
    return TextJob(
        config=config,
        training=training,
        stream=stream,
        view=view,
        num_classes=_classes_of(label_sets, of_tokens=predicts_tokens(training.text_student)),
        targets=targets,
        mean_class_probs=means,
        heads=heads,
        label_sets=tuple(used.values()),
        evaluation_stream=_evaluation_stream(config, training, view=view, labels_are=f"label set {next(iter(used))!r}"),
    )


def _require_aligned(label_set: LabelSet, *, spec: TargetSpec) -> None:
    """Refuse labels of tokens that are of others than students take them for, as earlier releases made them where asked to.

    Raises:
        MismatchError: they are.
    """
    why = None
    if isinstance(spec, SoftLabelsSpec):
        why = why_one_token_off(label_set.manifest.request.teacher.kind, positions=spec.positions)
    if why is not None:
        raise MismatchError(
            f"label set {label_set.manifest.name!r} ({label_set.manifest.id}) is one token off: {why}. Label again without "
            "target.positions"
        )


def _wants_head(training: TrainingConfig) -> bool:
    return training.terms is not None and any(term.kind == "soft_labels" for term in training.terms)


def _classes_of(label_sets: dict[str, LabelSet], *, of_tokens: bool) -> int | None:
    """Return the classes that a student has to tell apart, as the label sets know them."""
    manifests = [label_set.manifest for label_set in label_sets.values()]
    targets = [manifest.request.target for manifest in manifests]
    labels = [target for target in targets if isinstance(target, SoftLabelsSpec) and (target.positions != "view") == of_tokens]
    named = [] if of_tokens else [len(manifest.classes) for manifest in manifests if manifest.classes is not None]
    return next((target.num_classes for target in labels), next(iter(named), None))


def _hard_job(config: ExperimentConfig, training: TrainingConfig) -> TextJob:
    source_config = training.source or config.source
    if source_config is None:
        raise ConfigError("source: is needed for hard labels; give source, or training.source")
    _require_texts(source_config, key="source" if training.source is None else "training.source")
    views = _text_views(config)
    tokenizer = load_student_tokenizer(config, training)
    view = view_of(views, tokenizer=tokenizer.facts, tokenizer_key=tokenizer_key(training))
    require_first_weights(training, view=view, what="the view of this training")
    source = open_source(source_config)
    classes = source.classes
    stream = TextSourceStream(
        source,
        tokenizer=tokenizer,
        view=view,
        folder=Path(training.output) / _TOKENS_FOLDER,
        sample_fraction=training.sample_fraction,
        dead_letter_limit=config.generation.dead_letter_limit,
        held_blocks=training.shuffle_window_blocks + 1,
    )
    return TextJob(
        config=config,
        training=training,
        stream=stream,
        view=view,
        num_classes=len(classes) if classes else None,
        evaluation_stream=_evaluation_stream(config, training, view=view, labels_are="the training"),
    )


def _require_texts(source: SourceConfig, *, key: str) -> None:
    if not source.of_text:
        raise ConfigError(f"{key}.kind: {source.kind} is of pictures; a student of texts needs a source of texts")


def _text_views(config: ExperimentConfig) -> TokensViewsConfig | MaskedTokensViewsConfig:
    if not isinstance(config.views, TokensViewsConfig | MaskedTokensViewsConfig):
        raise ConfigError(f"views.kind: {config.views.kind} is of pictures; a student of texts needs tokens or masked_tokens")
    return config.views


def _evaluation_stream(
    config: ExperimentConfig, training: TrainingConfig, *, view: TextViewSpec, labels_are: str
) -> TextSourceStream | None:
    """Return the texts to evaluate on, cut and masked as those that are trained on, one mask for ever.

    Raises:
        ConfigError: no tokenizer is named, or it does not load.
        MismatchError: the student's tokenizer is not that of the labels.
    """
    if training.evaluation is None:
        return None
    _require_texts(training.evaluation.source, key="training.evaluation.source")
    tokenizer = load_student_tokenizer(config, training)
    require_tokenizer(tokenizer, view=view, name=training.tokenizer or "of the student", what=labels_are)
    return TextSourceStream(
        open_source(training.evaluation.source),
        tokenizer=tokenizer,
        view=view,
        folder=Path(training.output) / _TOKENS_FOLDER,
        num_views=1,
        dead_letter_limit=config.generation.dead_letter_limit,
    )
