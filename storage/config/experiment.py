"""One experiment: what is labelled, by whom, and which student learns from it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from storage.config.base import Config
from storage.config.generation import GenerationConfig
from storage.config.labels import EvaluationViewsConfig, ViewsConfig
from storage.config.source import SourceConfig
from storage.config.targets import SoftLabelsConfig, TargetConfig
from storage.config.teacher import TeacherConfig
from storage.config.training import TrainingConfig

TargetName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]


class ExperimentConfig(Config):
    """One YAML file. `decant label` needs cache, source and teacher; `decant train` needs training."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] = Field(
        description="Name of the experiment; the label set can be found by it."
    )
    cache: str | None = Field(default=None, description="Local path or fsspec URL of the cache of parts and label sets.")
    source: SourceConfig | None = Field(default=None, description="Pictures or texts to label.")
    teacher: TeacherConfig | None = Field(default=None, description="Network that labels.")
    views: ViewsConfig = Field(
        default=EvaluationViewsConfig(kind="evaluation"), description="Views of each picture or text that are labelled."
    )
    target: TargetConfig | None = Field(
        default=SoftLabelsConfig(),
        description="What is stored of each view; without a `kind`, soft labels. null where `targets` stands in its place.",
    )
    targets: dict[TargetName, TargetConfig] | None = Field(
        default=None,
        min_length=1,
        description="Several targets by names of your own, each like `target`, in place of it: labels and hidden states, for "
        "instance. Each becomes a label set over the same samples.",
    )
    generation: GenerationConfig = Field(default=GenerationConfig(), description="How labels are generated.")
    training: TrainingConfig | None = Field(default=None, description="How a student is trained.")

    @property
    def named_targets(self) -> dict[str, TargetConfig]:
        """Targets by name; one that stands alone is named `target`."""
        if self.targets is not None:
            return dict(self.targets)
        return {} if self.target is None else {"target": self.target}

    @property
    def label_set_names(self) -> dict[str, str]:
        """Names of label sets by those of targets: the experiment's, or `<experiment>.<target>` of several."""
        return {name: self.name if self.targets is None else f"{self.name}.{name}" for name in self.named_targets}

    @model_validator(mode="after")
    def _check_targets(self) -> ExperimentConfig:
        if self.targets is not None and "target" not in self.model_fields_set:
            object.__setattr__(self, "target", None)
        if (self.target is None) == (self.targets is None):
            what = "neither target nor targets is" if self.target is None else "both target and targets are"
            raise ValueError(f"{what} given; give target for one, or targets: {{name: ...}} for several")
        return self

    @model_validator(mode="after")
    def _check_contents(self) -> ExperimentConfig:
        """Refuse pictures where texts belong, and the other way round."""
        sections = {
            "source.kind": self.source,
            "teacher.kind": self.teacher,
            "views.kind": self.views if "views" in self.model_fields_set else None,
        }
        found = [(key, section.kind, section.of_text) for key, section in sections.items() if section is not None]
        for key, kind, of_text in found[1:]:
            first_key, first_kind, first_of_text = found[0]
            if of_text != first_of_text:
                raise ValueError(
                    f"{key} = {kind} is for {_contents(of_text)}, but {first_key} = {first_kind} is for "
                    f"{_contents(first_of_text)}; change one of them{_remedy(self)}"
                )
        if found and found[0][2] and not self.views.of_text:
            key, kind, _ = found[0]
            raise ValueError(
                f"views: missing; {key} = {kind} is for texts, which have no views by default; give views.kind: tokens or "
                "masked_tokens"
            )
        return self

    @model_validator(mode="after")
    def _check_positions(self) -> ExperimentConfig:
        for name, target in self.named_targets.items():
            if not isinstance(target, SoftLabelsConfig):
                continue
            positions = target.positions_of(self.teacher.kind if self.teacher is not None else "")
            key = ("target" if self.targets is None else f"targets.{name}") + ".positions"
            said = f"{key} = {positions}" if target.positions is not None else f"{key} is {positions} by default"
            if positions != "view" and not self.views.of_text:
                raise ValueError(f"{said}: tokens, but views.kind = {self.views.kind} is for pictures; use positions: view")
            if positions == "masked" and self.views.kind != "masked_tokens":
                raise ValueError(
                    f"{said}, but views.kind = {self.views.kind} masks nothing; use views.kind: masked_tokens, or positions: all"
                )
        return self

    @model_validator(mode="after")
    def _check_training(self) -> ExperimentConfig:
        if self.training is None:
            return self
        # Parts of texts hold the token ids themselves.
        needs_source = self.training.targets.kind != "cached" or not self.views.of_text
        if needs_source and self.training.source is None and self.source is None:
            raise ValueError("training has no samples: give source, or training.source")
        if self.training.targets.kind == "cached" and self.cache is None:
            raise ValueError("training.targets.kind is cached but there is no cache; give cache")
        if self.training.targets.kind == "live" and self.teacher is None:
            raise ValueError("training.targets.kind is live but there is no teacher; give teacher")
        return self


def _contents(of_text: bool) -> str:
    return "texts" if of_text else "pictures"


def _remedy(config: ExperimentConfig) -> str:
    """Name the key by which a source that can hold either holds texts."""
    names = {"parquet": "source.text_column", "webdataset": "source.text_fields"}
    if config.source is None or config.source.of_text or config.source.kind not in names:
        return ""
    return f"; a {config.source.kind} source is for texts where {names[config.source.kind]} is given"
