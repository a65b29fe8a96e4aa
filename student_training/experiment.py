"""From a config to a training run: find the rows, the views and the classes, and train."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.cache import Cache
from storage.config import ExperimentConfig, TrainingConfig
from storage.config.students import StudentConfig
from storage.errors import ConfigError
from storage.label_set import LabelSet
from storage.serving import served_target, soft_labels_name
from storage.sources import open_source
from storage.specs import ImportedView, SampledCodec, SoftLabelsSpec, ThresholdCodec, ViewSpec
from storage.streams.base import RowStream, StreamRows
from storage.streams.label_stream import LabelStream
from storage.upkeep.reading import hold_label_set
from student_training.export import RESULT_FILE, TrainingResult
from student_training.job import LiveTeacher, training_section
from student_training.left_out import DEAD_LETTERS_FILE
from student_training.output_folder import try_output
from student_training.picture_terms.experiment import make_picture_terms_job
from student_training.streams import build_source_stream, classes_of_source
from student_training.student_views import OTHER_VIEWS, student_view
from student_training.text.experiment import make_text_job
from student_training.trainer import run_job, train


@dataclass(frozen=True, kw_only=True)
class LiveSide:
    """A teacher that runs in every step, and the views it is shown."""

    teacher: LiveTeacher
    view: ViewSpec
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """What is trained on."""

    stream: RowStream[StreamRows]
    view: ViewSpec
    num_classes: int
    generation_temperature: float = 1.0
    mean_class_probs: npt.NDArray[np.float64] | None = None
    note: str | None = None
    label_set: LabelSet | None = None


def run_experiment(
    config: ExperimentConfig, *, live: LiveSide | None = None, resume: bool = True, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train the student of a config and return its figures.

    Args:
        live: for targets of kind live.
        resume: False begins anew.
        say: takes each line a person should read.

    Raises:
        DecantError: as `student_training.trainer.train`.
    """
    if config.training is None:
        raise ConfigError("training: is needed to train")
    training = training_section(config)
    # Before sources are listed and label sets read, which takes long of large ones.
    try_output(Path(training.output), unless=RESULT_FILE)
    if not isinstance(training.student, StudentConfig):
        job = make_text_job(config)
        with _held(job.label_sets):
            return _finish(config, run_job(job, resume=resume), say=say)
    _require_pictures(config, training)
    if training.terms is not None:
        terms_job = make_picture_terms_job(config)
        if terms_job.note is not None:
            say(f"{config.name}: {terms_job.note}")
        with _held(terms_job.label_sets):
            return _finish(config, run_job(terms_job, resume=resume), say=say)
    match training.targets.kind:
        case "cached":
            rows = _cached_rows(config, training)
        case "hard":
            rows = _hard_rows(config, training)
        case "live":
            if live is None:
                raise ConfigError("training.targets.kind: live needs a teacher beside the trainer; run it with `decant train`")
            rows = _Rows(stream=build_source_stream(config), view=live.view, num_classes=live.num_classes)
    if rows.note is not None:
        say(f"{config.name}: {rows.note}")
    with _held([] if rows.label_set is None else [rows.label_set]):
        result = train(
            config,
            stream=rows.stream,
            view=rows.view,
            num_classes=rows.num_classes,
            generation_temperature=rows.generation_temperature,
            mean_class_probs=rows.mean_class_probs,
            teacher=None if live is None else live.teacher,
            resume=resume,
        )
    return _finish(config, result, say=say)


def _require_pictures(config: ExperimentConfig, training: TrainingConfig) -> None:
    evaluation = None if training.evaluation is None else training.evaluation.source
    sources = {"source": config.source, "training.source": training.source, "training.evaluation.source": evaluation}
    for key, source in sources.items():
        if source is not None and source.of_text:
            raise ConfigError(
                f"{key}.kind: {source.kind} is of texts, and training.student is a network of pictures; give a source of "
                "pictures, or training.student.kind: transformers, bilstm or text_cnn"
            )


@contextmanager
def _held(label_sets: Sequence[LabelSet]) -> Iterator[None]:
    """Keep gc off label sets; one process speaks for all of a job."""
    with ExitStack() as stack:
        for label_set in label_sets if os.environ.get("RANK", "0") == "0" else ():
            stack.enter_context(hold_label_set(label_set))
        yield


def _finish(config: ExperimentConfig, result: TrainingResult, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Say what a training came to and return its figures."""
    if result.already_finished:
        say(f"{config.name}: nothing to do, {result.output} holds this run, finished")
    else:
        again = f" (went on from step {result.resumed_from_step:,})" if result.resumed_from_step else ""
        of_text = result.sequences_per_second is not None
        speed = f"{result.sequences_per_second:,.0f} sequences/s" if of_text else f"{result.images_per_second:,.0f} images/s"
        say(f"{config.name}: {result.steps:,} steps in {result.seconds:.1f} s{again}, {speed}")
    if result.perplexity is not None:
        right = f"{result.top1:.4f} of tokens right"
        say(f"  perplexity       {result.perplexity:,.2f} on {result.num_evaluated:,} sequences, {right}")
    elif result.top1 is not None:
        samples = "pictures" if result.sequences_per_second is None else "texts"
        say(f"  accuracy         {result.top1:.4f} top-1 on {result.num_evaluated:,} {samples}")
    left_out = {"trained on": result.num_left_out, "evaluated on": result.num_left_out_of_evaluation}
    if any(left_out.values()):
        counts = ", ".join(f"{count:,} that would be {use}" for use, count in left_out.items() if count)
        say(f"  left out         {counts}: pictures that cannot be read, see {Path(result.output) / DEAD_LETTERS_FILE}")
    say(f"  teacher passes   {result.teacher_passes:,}")
    say(f"  student          {result.student}")
    return asdict(result)


def _cached_rows(config: ExperimentConfig, training: TrainingConfig) -> _Rows:
    assert config.cache is not None
    cache = Cache.at(config.cache)
    if getattr(training.targets, "label_sets", None) is not None:
        raise ConfigError(
            "training.targets.label_sets names label sets for training.terms, and there are none; say in terms what is learned, "
            "or name the one of soft labels in training.targets.label_set"
        )
    name = getattr(training.targets, "label_set", None)
    label_set = LabelSet.open(cache, name_or_id=name or config.label_set_names[soft_labels_name(config)])
    target = served_target(label_set, config=config, sections=config.model_fields_set if name else None)
    source = training.source or config.source
    if source is None:
        raise ConfigError("source: is needed; the labels join the pictures they were made from")
    if training.sample_fraction < 1:
        raise ConfigError(
            f"training.sample_fraction: {training.sample_fraction} only works with hard labels; label a smaller source instead"
        )
    request = label_set.manifest.request
    _require_temperature_of_draws(request.soft_labels, training=training)
    imported = isinstance(request.view, ImportedView)
    return _Rows(
        stream=LabelStream(label_set, source=open_source(source), target=target, held_blocks=training.shuffle_window_blocks + 1),
        view=student_view(config, training) if imported else request.rendered_view(),
        num_classes=request.soft_labels.num_classes,
        generation_temperature=request.soft_labels.generation_temperature,
        mean_class_probs=label_set.class_means() if training.loss.rest == "mean" else None,
        note=OTHER_VIEWS if imported else None,
        label_set=label_set,
    )


def _require_temperature_of_draws(spec: SoftLabelsSpec, *, training: TrainingConfig) -> None:
    """Refuse drawn labels at another temperature: the expected value of a power of a draw is not that of the probability."""
    drawn_at, matched_at = spec.generation_temperature, training.loss.distillation_temperature
    if isinstance(spec.codec, SampledCodec | ThresholdCodec) and matched_at != drawn_at and training.loss.hard_weight < 1:
        raise ConfigError(
            f"training.loss.distillation_temperature is {matched_at:g} and the labels were drawn at {drawn_at:g} (codec "
            f"{spec.codec.kind}): changing it afterwards would bias them; set distillation_temperature: {drawn_at:g}, or label "
            f"at {matched_at:g}"
        )


def _hard_rows(config: ExperimentConfig, training: TrainingConfig) -> _Rows:
    return _Rows(
        stream=build_source_stream(config), view=student_view(config, training), num_classes=classes_of_source(config, training)
    )
