"""The language-model trial: `python -m tests.trials.stories`.

A real pretrained language model (stories260K from ../shared/data/stories260k_lm) is tuned on the first nine tenths of tinyshakespeare,
labels them, and, for each seed, a student of a quarter of its size learns from the next tokens alone, and from cached soft labels.
Perplexity is that of the last tenth. Runs the commands a user would run, and prints a table; killed, it goes on where it was.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

from student_training.demo_support import write_experiments
from tests.stories import STORIES, save_stories
from tests.trials.support import ROOT, SHARED_DATA, decant, table_row, train_seeds, trial_arguments

DATA = SHARED_DATA / "tinyshakespeare/input.txt.gz"
FOLDER = Path("runs/stories_trial")
_LENGTH = 128
_TEACHER_EPOCHS = 6
_STUDENT_EPOCHS = 6
_STUDENT = {
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": _LENGTH,
    "tie_word_embeddings": True,
}


def write_corpus(folder: Path) -> None:
    """Write the speeches, one a line, as two files, and the model with its tokenizer; once."""
    if (folder / "stories/tokenizer.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    speeches = [" ".join(speech.split()) for speech in gzip.decompress(DATA.read_bytes()).decode().split("\n\n")]
    cut = len(speeches) * 9 // 10
    for split, kept in (("train", speeches[:cut]), ("test", speeches[cut:])):
        (folder / f"{split}.txt").write_text("".join(f"{speech}\n" for speech in kept if speech))
    save_stories(folder / "stories")


def write_configs(folder: Path) -> dict[str, Path]:
    """Write the experiments of the trial and return their files."""
    common = {
        "source": {"kind": "text", "path": str(folder / "train.txt"), "unit_size": 1000},
        "views": {"kind": "tokens", "length": _LENGTH, "layout": "pack"},
    }

    def training(*, output: str, epochs: int, learning_rate: float) -> dict[str, Any]:
        return {
            "output": str(folder / output),
            "tokenizer": str(folder / "stories"),
            "evaluation": {"source": {"kind": "text", "path": str(folder / "test.txt")}, "every_epochs": epochs},
            "optimizer": {"name": "adamw", "learning_rate": learning_rate, "weight_decay": 0.01},
            "schedule": {"name": "cosine", "warmup_epochs": 0.5},
            "epochs": epochs,
            "batch_size": 16,
            "clip_grad_norm": 1.0,
        }

    student = {"kind": "transformers", "head": "causal_lm", "architecture": "llama", "config": _STUDENT}
    tuned = {"kind": "transformers", "head": "causal_lm", "path": str(folder / "stories"), "pretrained": True}
    experiments: dict[str, dict[str, Any]] = {
        "teacher": {
            "name": "stories-teacher",
            **common,
            "training": {
                **training(output="teacher", epochs=_TEACHER_EPOCHS, learning_rate=1e-3),
                "student": tuned,
                "targets": {"kind": "hard"},
            },
        },
        "hard": {
            "name": "stories-hard",
            **common,
            "training": {
                **training(output="hard", epochs=_STUDENT_EPOCHS, learning_rate=4e-3),
                "student": student,
                "targets": {"kind": "hard"},
            },
        },
        "cached": {
            "name": "stories",
            "cache": str(folder / "cache"),
            **common,
            "teacher": {"kind": "causal_lm", "name": str(folder / "teacher"), "tokenizer": str(folder / "stories")},
            "target": {"k": 32, "codec": {"kind": "compact"}},
            "training": {
                **training(output="cached", epochs=_STUDENT_EPOCHS, learning_rate=4e-3),
                "student": student,
                "targets": {"kind": "cached"},
                "terms": [{"kind": "soft_labels", "rest": "mean", "weight": 0.7}, {"kind": "hard_tokens", "weight": 0.3}],
            },
        },
    }
    return write_experiments(ROOT / folder, experiments)


def main() -> int:
    """Run the trial and print its table."""
    arguments = trial_arguments(__doc__)
    if not (DATA.exists() and STORIES.exists()):
        sys.stderr.write(f"SKIPPED: the trial needs {DATA} and {STORIES}\n")
        return 0
    started = time.monotonic()
    write_corpus(ROOT / FOLDER)
    files = write_configs(FOLDER)
    teacher = decant("train", str(files.pop("teacher")))
    labels = decant("label", str(files["cached"]))
    students = train_seeds(files, folder=FOLDER, num_seeds=arguments.seeds)
    passes = sum(result["teacher_passes"] for results in students.values() for result in results)
    sys.stdout.write("| | perplexity of a token, last tenth of tinyshakespeare |\n|---|---|\n")
    sys.stdout.write(table_row("teacher: stories260K, tuned", [teacher["perplexity"]], unit=""))
    sys.stdout.write(table_row("student, next tokens", [result["perplexity"] for result in students["hard"]], unit=""))
    sys.stdout.write(table_row("student, cached soft labels", [result["perplexity"] for result in students["cached"]], unit=""))
    sys.stdout.write(
        f"\n{labels['num_positions']:,} tokens labelled, {labels['bytes_per_position']:.1f} bytes each, the text included; teacher "
        f"passes while students trained: {passes}; {(time.monotonic() - started) / 60:.0f} minutes\n"
    )
    if arguments.output:
        arguments.output.write_text(json.dumps({"teacher": teacher, "labels": labels, "students": students}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
