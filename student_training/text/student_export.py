"""Students of texts as they leave: transformers checkpoints, or weights and config of our own networks; and the way back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import transformers
from pydantic import Field, TypeAdapter
from transformers import AutoConfig, PreTrainedModel

from storage.config.students import (
    BiLstmStudentConfig,
    MiniAlbertStudentConfig,
    TextCnnStudentConfig,
    TextStudentConfig,
    TransformersStudentConfig,
)
from storage.errors import CorruptError
from storage.specs import TextViewSpec
from storage.text.tokenizer import RECORDED_TOKENIZER
from student_training.checkpoint import write_json
from student_training.quantization import float_state, quantize_for_training, set_thresholds, thresholds
from student_training.text.interface import TextStudent
from student_training.text.mini_albert import MiniAlbertStudent
from student_training.text.small_students import BiLstmStudent, TextCnnStudent
from student_training.text.transformers_student import StudentKind, TransformersStudent

STUDENT_FILE = "model.safetensors"
DESCRIPTION_FILE = "config.json"
QUANTIZATION_FILE = "quantization.json"
_GENERATION_FILE = "generation_config.json"
_ONE_FILE = "1000TB"
_HEADS: dict[str, StudentKind] = {
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "masked_lm",
    "LMHeadModel": "causal_lm",
    "ForCausalLM": "causal_lm",
    "ForSequenceClassification": "sequence_classifier",
}
_OwnConfig = Annotated[MiniAlbertStudentConfig | BiLstmStudentConfig | TextCnnStudentConfig, Field(discriminator="kind")]
_OWN: TypeAdapter[MiniAlbertStudentConfig | BiLstmStudentConfig | TextCnnStudentConfig] = TypeAdapter(_OwnConfig)


def export_text_student(
    student: TextStudent, *, folder: Path, config: TextStudentConfig, view: TextViewSpec, weights: Literal["trained", "ema"]
) -> Path:
    """Write a student and return the path of `model.safetensors`.

    transformers: what `from_pretrained(folder)` of its Auto class reads. Our own networks: weights, and a `config.json` with
    their section. Either `config.json` says which tokenizer's tokens the student knows. `quantization.json` holds bits and
    activation thresholds of one that was trained for integers; its weights are not rounded, since the grid follows from them.

    Args:
        student: not wrapped.
        folder: where to.
        config: as it was made from.
        view: of the texts it was trained on.
        weights: whose they are.
    """
    path = folder / STUDENT_FILE
    # A folder of its own, so that a kill leaves no half of a checkpoint under the final names.
    parts = folder / "student.tmp"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    if isinstance(student, TransformersStudent):
        # In the place of what stands there of weights that the training began with.
        setattr(student.network.config, RECORDED_TOKENIZER, view.tokenizer_sha256)
        student.network.save_pretrained(parts, state_dict=float_state(student.network), max_shard_size=_ONE_FILE)
    else:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
        safetensors.torch.save_file(tensors, parts / STUDENT_FILE, metadata={"format": "pt"})
        description = {
            "student": config.model_dump(mode="json"),
            "num_classes": student.shape.num_classes,
            "vocabulary_size": view.vocabulary_size,
            RECORDED_TOKENIZER: view.tokenizer_sha256,
            "weights": weights,
        }
        write_json(parts / DESCRIPTION_FILE, description)
    if isinstance(config, TransformersStudentConfig) and config.quantization is not None:
        quantization = {**config.quantization.model_dump(mode="json"), "activation_thresholds": thresholds(student)}
        write_json(parts / QUANTIZATION_FILE, quantization)
    # Of an earlier student, perhaps, that was trained otherwise.
    for name in (QUANTIZATION_FILE, _GENERATION_FILE):
        (folder / name).unlink(missing_ok=True)
    # The weights last: with them, the student is there.
    for file in sorted(parts.iterdir(), key=lambda file: file.name == STUDENT_FILE):
        file.replace(folder / file.name)
    parts.rmdir()
    return path


def load_text_student(folder: Path) -> TextStudent:
    """Return an exported student on the CPU, ready for evaluation.

    Raises:
        CorruptError: the folder holds no student of texts that this release wrote.
    """
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION_FILE).read_bytes())
        student = _load_own(folder, description) if "student" in description else _load_transformers(folder)
        quantization = folder / QUANTIZATION_FILE
        if quantization.is_file():
            record = json.loads(quantization.read_bytes())
            quantize_for_training(student, bits=record["bits"], activation_decay=record["activation_decay"])
            set_thresholds(student, largest=record["activation_thresholds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CorruptError(
            f"{folder} holds no student of texts that can be loaded ({type(error).__name__}: {error}); export it again, or give "
            "the folder of a finished training"
        ) from error
    return student.eval()


def _load_transformers(folder: Path) -> TransformersStudent:
    described = AutoConfig.from_pretrained(folder)
    (name,) = described.architectures
    (kind,) = {kind for suffix, kind in _HEADS.items() if name.endswith(suffix)}
    network: PreTrainedModel = getattr(transformers, name).from_pretrained(folder)
    num_classes = int(described.num_labels if kind == "sequence_classifier" else described.vocab_size)
    return TransformersStudent(network, kind=kind, num_classes=num_classes)


def _load_own(folder: Path, description: dict[str, Any]) -> TextStudent:
    config = _OWN.validate_json(json.dumps(description["student"]))
    tensors = safetensors.torch.load_file(folder / STUDENT_FILE)
    sizes = {"vocabulary_size": description["vocabulary_size"], "num_classes": description["num_classes"]}
    student: TextStudent
    match config:
        case MiniAlbertStudentConfig():
            student = MiniAlbertStudent(config, **sizes, max_tokens=len(tensors["positions.weight"]))
        case BiLstmStudentConfig():
            student = BiLstmStudent(config, **sizes)
        case TextCnnStudentConfig():
            student = TextCnnStudent(config, **sizes)
    student.load_state_dict(tensors)
    return student
