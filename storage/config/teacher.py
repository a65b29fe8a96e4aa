"""Which network labels, and how it runs."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from storage.config.base import Config
from storage.config.devices import TeacherDevice

PictureTeacher = Literal["timm", "transformers", "factory"]
TextTeacher = Literal["masked_lm", "causal_lm", "sequence_classifier", "text_factory"]
_OF_TRANSFORMERS = ("transformers", "masked_lm", "causal_lm", "sequence_classifier")
_TRANSPORT = frozenset(
    {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token", "trust_remote_code"}
)


class TeacherConfig(Config):
    """A teacher network. Its own preprocessing is used: the evaluation view of pictures, the tokenizer of texts.

    A factory of your own is called with `kwargs` and returns `(module, description)`. Of pictures: a torch module from normalised
    float pictures [B, 3, H, W] to logits [B, C], and `input_size` (3, H, W), `mean`, `std`, and optionally `crop_pct`,
    `crop_mode`, `interpolation` and `label_names`; a module with a `pretrained_cfg` of these, as timm's have, may stand alone. Of
    texts: `module(input_ids, attention_mask)` gives logits, and the description has `positions` (masked, all, next or view), and
    optionally `max_length` and `class_names`. The folder of its module must be on PYTHONPATH. Its name, `kwargs` and weights say
    which teacher it is, not its code: rename it when its forward pass changes.
    """

    kind: PictureTeacher | TextTeacher = Field(
        description="Of pictures: timm model name, transformers image classifier, or your own `package.module:factory`. Of "
        "texts: masked_lm, causal_lm or sequence_classifier of transformers, or your own text_factory."
    )
    name: str = Field(
        description="timm: model name or hub tag (`hf-hub:...`); transformers, masked_lm, causal_lm, sequence_classifier: hub id "
        "or local folder; factory, text_factory: `package.module:factory`."
    )
    tokenizer: str | None = Field(
        default=None,
        description="Texts: hub id or local folder of the tokenizer, which must be the model's where that has one; null: the "
        "model's own. A text_factory has none of its own.",
    )
    checkpoint: str | None = Field(
        default=None,
        description="Local checkpoint, safetensors or a state dict (read with weights_only). null: pretrained weights.",
    )
    num_classes: int | None = Field(default=None, ge=1, description="Number of classes; null: what the checkpoint's config says.")
    kwargs: dict[str, Any] = Field(default={}, description="Further arguments of the model's constructor.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="Arithmetic of the forward pass.")
    device: TeacherDevice = Field(
        default="auto",
        description="auto, cpu, cuda, cuda:1, mps. Asking for one that is not there is an error. Of several GPUs of a machine, "
        "auto and cuda give each training process (by LOCAL_RANK) and each of the local runner's workers its own.",
    )

    @property
    def of_text(self) -> bool:
        """Whether it reads texts."""
        return self.kind in get_args(TextTeacher)

    @property
    def transport(self) -> dict[str, Any]:
        """Those of `kwargs` that say where the files of a model of transformers come from, not what the network is."""
        if self.kind not in _OF_TRANSFORMERS:
            return {}
        return {key: value for key, value in self.kwargs.items() if key in _TRANSPORT}

    @model_validator(mode="after")
    def _check_tokenizer(self) -> TeacherConfig:
        if self.tokenizer is not None and not self.of_text:
            raise ValueError(
                f"tokenizer {self.tokenizer!r} for a teacher of pictures ({self.kind}), which reads none; leave it out"
            )
        if self.tokenizer is None and self.kind == "text_factory":
            raise ValueError("a text_factory has no tokenizer of its own; give tokenizer: a hub id or a local folder")
        if self.num_classes is not None and self.kind in ("masked_lm", "causal_lm"):
            raise ValueError(
                f"num_classes {self.num_classes} of a {self.kind}, whose classes are its tokenizer's tokens; leave it out"
            )
        return self
