"""How a student is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from storage.config.base import Config
from storage.config.devices import TrainingDevice
from storage.config.source import SourceConfig
from storage.config.students import AnyStudentConfig, StudentConfig, TextStudentConfig
from storage.config.terms import TermConfig
from storage.errors import ConfigError
from storage.specs import Interpolation, Size


class CachedTargetsConfig(Config):
    """Targets from label sets: no teacher runs."""

    kind: Literal["cached"] = Field(description="Soft labels and other targets from the cache.")
    label_set: str | None = Field(
        default=None,
        description="Name or id of the label set, whose teacher's files may then be others than `teacher` says; null: the one "
        "this config's labels make.",
    )
    label_sets: dict[str, str] | None = Field(
        default=None,
        min_length=1,
        description="Names or ids of several label sets over the same samples, by names of their targets, in place of "
        "`label_set`.",
    )

    @model_validator(mode="after")
    def _check_names(self) -> CachedTargetsConfig:
        if self.label_set is not None and self.label_sets is not None:
            raise ValueError("label_set and label_sets are both given; give label_sets alone, with a name for each target")
        return self


class HardTargetsConfig(Config):
    """Targets from the source's own labels: baselines and teachers."""

    kind: Literal["hard"] = Field(description="The source's own labels.")
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="Label smoothing.")


class LiveTargetsConfig(Config):
    """Targets from the teacher itself, run in every step. For comparison only."""

    kind: Literal["live"] = Field(description="The teacher runs in every step, for comparison; of pictures alone.")


TargetsConfig = Annotated[CachedTargetsConfig | HardTargetsConfig | LiveTargetsConfig, Field(discriminator="kind")]


class LossConfig(Config):
    """What the student minimises: (1 - hard_weight) * distillation + hard_weight * cross entropy with the hard label."""

    rest: Literal["uniform", "mean", "bucket", "renormalize"] = Field(
        default="uniform",
        description="What becomes of the rest mass: spread evenly (TinyViT), spread by the mean class probability, kept as one "
        "bucket, or dropped by renormalising.",
    )
    distillation_temperature: float = Field(
        default=1.0, gt=0, description="Temperature at which teacher and student are matched."
    )
    scale_by_temperature_squared: bool = Field(default=True, description="Multiply the distillation loss by temperature squared.")
    hard_weight: float = Field(default=0.0, ge=0, le=1, description="Weight of the hard label's cross entropy.")


class OptimizerConfig(Config):
    """timm's optimisers, by name."""

    name: str = Field(default="adamw", description="Any name timm.optim.create_optimizer_v2 knows.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(default=0.05, ge=0, description="Weight decay; biases and norms are left out.")
    layer_decay: float | None = Field(default=None, gt=0, le=1, description="Layer-wise learning rate decay.")
    kwargs: dict[str, Any] = Field(default={}, description="Further arguments of the optimiser.")


class ScheduleConfig(Config):
    """timm's schedules, stepped every update."""

    name: Literal["cosine", "linear", "step", "constant"] = Field(default="cosine", description="Shape of the schedule.")
    warmup_epochs: float = Field(default=0.0, ge=0, description="Epochs of linear warm-up.")
    warmup_learning_rate: float = Field(default=1e-6, ge=0, description="Learning rate at the start of the warm-up.")
    min_learning_rate: float = Field(default=0.0, ge=0, description="Learning rate at the end.")
    decay_epochs: float | None = Field(default=None, gt=0, description="step: epochs between two decays.")
    decay_rate: float = Field(default=0.1, gt=0, le=1, description="step: factor of one decay.")


class EvaluationConfig(Config):
    """Accuracy on a labelled source."""

    source: SourceConfig = Field(description="Labelled pictures to evaluate on.")
    every_epochs: int = Field(default=1, ge=1, description="Epochs between evaluations; the last epoch is always evaluated.")
    batch_size: int | None = Field(default=None, ge=1, description="Null: the training batch size.")


class PreprocessingConfig(Config):
    """What the student does with pixels; null takes timm's defaults for the model, or the cached views' size."""

    size: Size | None = Field(default=None, description="Height and width of the student's input; null: that of the views.")
    mean: tuple[float, float, float] | None = Field(default=None, description="Channel means of pixels in 0..1.")
    std: tuple[float, float, float] | None = Field(default=None, description="Channel deviations of pixels in 0..1.")
    interpolation: Interpolation | None = Field(default=None, description="Resampling of evaluation pictures.")
    crop_fraction: float | None = Field(default=None, gt=0, le=1, description="Centre crop share of evaluation pictures.")


class TrainingConfig(Config):
    """How `decant train` runs."""

    output: str = Field(description="Folder for checkpoints, metrics.jsonl, TensorBoard events and the trained student.")
    student: AnyStudentConfig = Field(description="The network to train.")
    targets: TargetsConfig = Field(description="Where targets come from: cached, hard or live.")
    source: SourceConfig | None = Field(
        default=None,
        description="Pictures to train on; null: the experiment's source. With cached targets it must hold the same samples.",
    )
    tokenizer: str | None = Field(
        default=None,
        description="Texts: hub id or local folder of the student's tokenizer, which must be that of the labels; null: that of "
        "student.path, else the teacher's. Needed where texts are read: hard labels and evaluation.",
    )
    loss: LossConfig = Field(default=LossConfig(), description="Distillation loss and hard-label mix.")
    terms: tuple[TermConfig, ...] | None = Field(
        default=None,
        description="The weighted terms of the loss, in place of `loss`; null: what `loss` says.",
    )
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="Optimiser.")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="Learning rate schedule.")
    preprocessing: PreprocessingConfig = Field(default=PreprocessingConfig(), description="The student's input.")
    evaluation: EvaluationConfig | None = Field(default=None, description="Evaluation; null: none.")
    epochs: int = Field(default=1, ge=1, description="Passes over the samples.")
    batch_size: int = Field(default=128, ge=1, description="Views in one update over all processes together.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of initial weights, dropout and order.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="Mixed precision of training.")
    device: TrainingDevice = Field(default="auto", description="auto, cpu or cuda. Asking for one that is not there is an error.")
    clip_grad_norm: float | None = Field(default=None, gt=0, description="Largest gradient norm; null: not clipped.")
    ema_decay: float | None = Field(default=None, gt=0, lt=1, description="Decay of an averaged copy of the weights; null: none.")
    loader_workers: int = Field(default=0, ge=0, description="Processes that decode pictures; 0: in the training process.")
    shuffle_window_blocks: int = Field(
        default=16, ge=1, description="Blocks of rows (256 to 4,096 each) that are mixed with each other."
    )
    group_by_length: bool = Field(
        default=False,
        description="Texts: put sequences of like length in one batch, among those that are mixed with each other: less padding, "
        "batches less mixed.",
    )
    sample_fraction: float = Field(
        default=1.0, gt=0, le=1, description="Share of samples to train on, chosen by key: the same ones in every run."
    )
    checkpoint_every_steps: int | None = Field(default=None, ge=1, description="Steps between checkpoints; null: once an epoch.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Checkpoints that are kept.")
    log_every_steps: int = Field(default=20, ge=1, description="Steps between lines of metrics.jsonl.")
    torch_threads: int | None = Field(default=None, ge=1, description="Threads of torch; null: its default.")

    @model_validator(mode="after")
    def _check_sections(self) -> TrainingConfig:
        """Refuse sections that would be read by nobody."""
        of_pictures = isinstance(self.student, StudentConfig)
        if self.terms is not None and not self.terms:
            raise ValueError("terms is an empty list, so that nothing would be learned; name some, or leave terms out")
        if of_pictures and self.terms is not None and self.targets.kind == "live":
            raise ValueError("terms are of cached targets and hard labels; with targets.kind: live the loss is what loss says")
        if not of_pictures and self.preprocessing != PreprocessingConfig():
            raise ValueError(f"preprocessing is of pictures; a {self.student.kind} student reads token ids, so leave it out")
        if of_pictures and (self.tokenizer is not None or self.group_by_length):
            name = "tokenizer" if self.tokenizer is not None else "group_by_length"
            raise ValueError(f"{name} is of texts; a {self.student.kind} student sees pictures, so leave it out")
        if self.terms is not None and self.loss != LossConfig():
            raise ValueError("loss and terms are both given; say in terms what loss says, and drop loss")
        if self.terms is not None and getattr(self.targets, "smoothing", 0.0) > 0:
            raise ValueError("targets.smoothing stands beside terms; give smoothing to the term of hard labels or tokens")
        return self

    @property
    def picture_student(self) -> StudentConfig:
        """The student, which is of pictures.

        Raises:
            ConfigError: it is of texts.
        """
        if not isinstance(self.student, StudentConfig):
            raise ConfigError(
                f"training.student.kind is {self.student.kind}, a network of texts, but the source holds pictures; use kind "
                "timm, or a source of texts"
            )
        return self.student

    @property
    def text_student(self) -> TextStudentConfig:
        """The student, which is of texts.

        Raises:
            ConfigError: it is of pictures.
        """
        if isinstance(self.student, StudentConfig):
            raise ConfigError(
                "training.student.kind is timm, a network of pictures, but the source holds texts; use kind transformers, "
                "bilstm or text_cnn, or a source of pictures"
            )
        return self.student
