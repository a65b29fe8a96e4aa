"""`decant demo`: a teacher, its labels, and students with and without them, on real pictures that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from student_training.demo_support import (
    Command,
    fresh_folder,
    names_of_demo,
    say_next,
    seeds_in_words,
    spread,
    write_experiments,
)

_TEST_EVERY = 4
_LABELLED_FRACTION = 0.05
_PIXELS = 32
_STUDENT = {
    "name": "tiny_vit_5m_224",
    "num_classes": 10,
    "kwargs": {"embed_dims": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 4], "window_sizes": [4, 4, 4, 4]},
}
_TEACHER = {"name": "resnet10t", "num_classes": 10}
TEACHER_EPOCHS = 8
STUDENT_EPOCHS = 18
_VIEWS = {
    "kind": "random_resized_crop",
    "count": 8,
    "size": [_PIXELS, _PIXELS],
    "scale": [0.6, 1.0],
    "flip_probability": 0.0,
    "interpolation": "bilinear",
}
_PREPROCESSING = {
    "size": [_PIXELS, _PIXELS],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bilinear",
    "crop_fraction": 1.0,
}


def write_pictures(folder: Path) -> tuple[int, int]:
    """Write scikit-learn's 1,797 handwritten digits (UCI, 8x8 gray) as class folders of PNG and return (train, test) counts.

    Every fourth picture is for testing.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    counts = {"train": 0, "test": 0}
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "test" if index % _TEST_EVERY == 0 else "train"
        target = folder / split / str(label) / f"{index:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).save(target)
        counts[split] += 1
    return counts["train"], counts["test"]


def _training(folder: Path, *, output: str, epochs: int, student: Mapping[str, Any], learning_rate: float) -> dict[str, Any]:
    return {
        "output": str(folder / output),
        "student": dict(student),
        "preprocessing": _PREPROCESSING,
        "evaluation": {"source": {"kind": "image_folder", "path": str(folder / "pictures/test")}, "every_epochs": epochs},
        "optimizer": {"name": "adamw", "learning_rate": learning_rate, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup_epochs": epochs / 10},
        "epochs": epochs,
        "batch_size": 64,
        "clip_grad_norm": 1.0,
        "checkpoint_every_steps": 200,
    }


def write_configs(folder: Path, *, num_train: int) -> dict[str, Path]:
    """Write the experiments of the demo, as anybody would write them, and return their files."""
    pictures = {"kind": "image_folder", "path": str(folder / "pictures/train"), "unit_size": 512}
    # Equal budgets: the student with few labelled pictures sees each of them more often.
    few = max(1, round(num_train * _LABELLED_FRACTION) // 64) * 64
    hard_epochs = round(STUDENT_EPOCHS * (num_train // 64) / (few // 64))
    distilled = _training(folder, output="student-distilled", epochs=STUDENT_EPOCHS, student=_STUDENT, learning_rate=2e-3)
    hard = _training(folder, output="student-hard", epochs=hard_epochs, student=_STUDENT, learning_rate=2e-3)
    teacher = _training(folder, output="teacher", epochs=TEACHER_EPOCHS, student=_TEACHER, learning_rate=1e-3)
    experiments: dict[str, dict[str, Any]] = {
        "teacher": {
            "name": "digits-teacher",
            "source": pictures,
            "views": _VIEWS,
            "training": {**teacher, "targets": {"kind": "hard", "smoothing": 0.1}},
        },
        "distilled": {
            "name": "digits",
            "cache": str(folder / "cache"),
            "source": pictures,
            "teacher": {"kind": "timm", "name": f"local-dir:{folder / 'teacher'}"},
            "views": _VIEWS,
            "target": {"k": 5, "codec": {"kind": "compact"}},
            "training": {**distilled, "targets": {"kind": "cached"}},
        },
        "hard": {
            "name": "digits-hard",
            "source": pictures,
            "views": _VIEWS,
            "training": {**hard, "targets": {"kind": "hard"}, "sample_fraction": _LABELLED_FRACTION},
        },
    }
    return write_experiments(folder, experiments)


def _share(values: list[float]) -> str:
    return spread([100 * value for value in values], unit=" %")


def run_demo(folder: str, *, command: Command, num_seeds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the demo and return its figures.

    Args:
        folder: where everything is written; what an earlier demo wrote there is replaced, all else is left.
        command: runs a decant command.
        num_seeds: students of each kind.
        say: takes each line a person should read.

    Raises:
        DecantError: the folder holds something else, or a command failed.
    """
    root = fresh_folder(folder, names=names_of_demo("pictures", num_seeds=num_seeds), num_seeds=num_seeds)
    num_train, num_test = write_pictures(root / "pictures")
    files = write_configs(root, num_train=num_train)
    say(f"1/4 {num_train:,} handwritten digits to learn from, {num_test:,} to test on, in {root / 'pictures'}")
    teacher = command(["train", str(files["teacher"])])
    say(f"2/4 teacher ({_TEACHER['name']}) trained with hard labels: {100 * teacher['top1']:.2f} % right")
    labels = command(["label", str(files["distilled"])])
    say(
        f"3/4 labels: {labels['num_rows']:,} rows ({_VIEWS['count']} views a picture) in {labels['seconds']:.1f} s, "
        f"{labels['bytes_per_row']:.1f} bytes a row"
    )
    students: dict[str, list[float]] = {"hard": [], "distilled": []}
    teacher_passes = 0
    for seed in range(num_seeds):
        for kind, found in students.items():
            output = root / f"student-{kind}-{seed}"
            result = command(["train", str(files[kind]), "--set", f"training.seed={seed}", "--set", f"training.output={output}"])
            found.append(result["top1"])
            teacher_passes += result["teacher_passes"]
            say(f"4/4 student, {kind}, seed {seed}: {100 * result['top1']:.2f} % right")
    share = f"{100 * _LABELLED_FRACTION:.0f} % of the hard labels"
    say("")
    say(f"{'':<44}{'right on test pictures':>24}")
    say(f"{'teacher, all hard labels':<44}{_share([teacher['top1']]):>24}")
    say(f"{f'student, {share}':<44}{_share(students['hard']):>24}")
    say(f"{'student, cached soft labels of all pictures':<44}{_share(students['distilled']):>24}")
    say("")
    say(seeds_in_words(num_seeds))
    say(f"rows labelled: {labels['num_rows']:,}; bytes a row: {labels['bytes_per_row']:.1f}")
    say(f"teacher passes while students trained: {teacher_passes}")
    say_next(say, root=root, experiment="digits", distilled=files["distilled"])
    return {
        "teacher_top1": teacher["top1"],
        "hard_top1": students["hard"],
        "distilled_top1": students["distilled"],
        "num_rows": labels["num_rows"],
        "bytes_per_row": labels["bytes_per_row"],
        "teacher_passes_in_training": teacher_passes,
        "seconds_labelling": labels["seconds"],
    }
