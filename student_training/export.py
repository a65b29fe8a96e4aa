"""What a training leaves: a student any timm user can load, and the run's result."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import timm
from torch import nn

from storage.config.students import StudentConfig
from storage.errors import CorruptError
from student_training.checkpoint import write_json
from student_training.students import Preprocessing

STUDENT_FILE = "model.safetensors"
DESCRIPTION_FILE = "config.json"
RESULT_FILE = "result.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What a training came to.

    Attributes:
        output: folder of the run.
        student: path of the weights, safetensors; `config.json` beside it says how to load them.
        metrics: path of metrics.jsonl.
        weights: whether the exported and evaluated weights are the trained ones or their moving average.
        steps: updates made.
        epochs: passes over the samples.
        loss: mean loss of the last report.
        top1: accuracy of the exported student; None without evaluation.
        top5: likewise, among five classes.
        cross_entropy: likewise, in nats.
        num_evaluated: rows evaluated.
        images_per_second: training speed over all processes, without first updates, evaluations and checkpoints; None of texts.
        teacher_passes: rows that a teacher was run on during training; 0 with cached labels.
        seconds: time of all sessions of this run.
        resumed_from_step: updates that an earlier session had made; 0 from scratch.
        already_finished: whether nothing was done because the run had been finished before.
        perplexity: exp of the cross entropy of tokens; None of classifiers and without evaluation.
        sequences_per_second: likewise, of texts; None of pictures.
        num_left_out: pictures that training went without, since they cannot be read; dead_letters.jsonl lists them.
        num_left_out_of_evaluation: likewise, of evaluations.
    """

    output: str
    student: str
    metrics: str
    weights: Literal["trained", "ema"]
    steps: int
    epochs: int
    loss: float | None
    top1: float | None
    top5: float | None
    cross_entropy: float | None
    num_evaluated: int
    images_per_second: float | None
    teacher_passes: int
    seconds: float
    resumed_from_step: int
    already_finished: bool
    perplexity: float | None = None
    sequences_per_second: float | None = None
    num_left_out: int = 0
    num_left_out_of_evaluation: int = 0


def export_student(
    model: nn.Module,
    *,
    folder: Path,
    config: StudentConfig,
    num_classes: int,
    preprocessing: Preprocessing,
    weights: Literal["trained", "ema"],
) -> Path:
    """Write `model.safetensors` and `config.json` as timm's hub format has them, and return the path of the former.

    `timm.create_model(name, num_classes=num_classes, checkpoint_path=..., **kwargs)` loads the weights;
    `timm.create_model("local-dir:" + folder, pretrained=True)` loads the whole, preprocessing too.

    Args:
        model: not wrapped.
        folder: where to.
        config: name and arguments of the network; where the name is of a folder or a place on the hub, what lies there says both.
        num_classes: classes of its head.
        preprocessing: its input.
        weights: whose they are.
    """
    path = folder / STUDENT_FILE
    temporary = path.with_name(path.name + ".tmp")
    # Cloned, since safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.replace(path)
    description = {
        "architecture": _architecture(model, name=config.name),
        "num_classes": num_classes,
        "model_args": {**_arguments_of_folder(model), **config.kwargs},
        "pretrained_cfg": {"num_classes": num_classes, **preprocessing.to_timm()},
        "weights": weights,
        "timm": timm.__version__,
    }
    write_json(folder / DESCRIPTION_FILE, description)
    return path


def _architecture(model: nn.Module, *, name: str) -> str:
    """Return the name by which timm makes the network; that of a folder or of the hub is where its description lies."""
    given: Any = getattr(model, "pretrained_cfg", {})
    return str(given["architecture"]) if ":" in name else name


def _arguments_of_folder(model: nn.Module) -> dict[str, Any]:
    """Return the arguments that timm took from the description in a folder or on the hub."""
    given: dict[str, Any] = getattr(model, "pretrained_model_args", {})
    return {name: value for name, value in given.items() if name != "num_classes"}


def write_result(result: TrainingResult, *, folder: Path, identity: dict[str, Any], evaluation: Any) -> None:
    """Commit `result.json`, last of all: with it, the run is finished."""
    write_json(folder / RESULT_FILE, {**asdict(result), "identity": identity, "evaluation": evaluation})


def read_result(folder: Path) -> tuple[TrainingResult, dict[str, Any], Any] | None:
    """Return the result of a finished run, its identity and its evaluation config; None if the run is not finished.

    Raises:
        CorruptError: result.json is not what this release writes.
    """
    path = folder / RESULT_FILE
    if not path.is_file() or not (folder / STUDENT_FILE).is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
        names = [field.name for field in fields(TrainingResult) if field.default is MISSING or field.name in record]
        result = TrainingResult(**{name: record[name] for name in names})
        return result, record["identity"], record["evaluation"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(
            f"{path} is damaged, or another release wrote it ({type(error).__name__}: {error}); delete it, and a rerun "
            "writes it from the last checkpoint"
        ) from error
