"""The SST-2 trial: `python -m tests.trials.sst2`.

Real data from ../shared/data/sst2: a teacher on all hard labels, then, for each seed, a small transformer and a small BiLSTM from
the same hard labels, and the same two from cached soft labels. Nothing is pretrained and nothing is downloaded. Runs the commands a
user would run, and prints a table. Half an hour on 2 cores; killed, it goes on where it was.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

from student_training.demo_support import write_experiments
from student_training.text.word_piece import write_word_piece
from tests.trials.support import ROOT, SHARED_DATA, decant, table_row, train_seeds, trial_arguments

DATA = SHARED_DATA / "sst2"
FOLDER = Path("runs/sst2_trial")
_VOCABULARY_SIZE = 8000
_EPOCHS = 3
_TRANSFORMER = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 96,
}
_TEACHER = {**_TRANSFORMER, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
_STUDENTS: dict[str, dict[str, Any]] = {
    "transformer": {"kind": "transformers", "head": "sequence_classifier", "architecture": "bert", "config": _TRANSFORMER},
    "bilstm": {"kind": "bilstm", "embedding_width": 64, "hidden_width": 64, "head_width": 64},
}


def write_corpus(folder: Path) -> None:
    """Write both splits as TSV, which is read in units, and a tokenizer of the training sentences; once."""
    if (folder / "tokenizer/tokenizer.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        (folder / f"{split}.tsv").write_bytes(gzip.decompress((DATA / f"{split}.tsv.gz").read_bytes()))
    sentences = [line.rsplit("\t", 1)[0] for line in (folder / "train.tsv").read_text().splitlines()[1:]]
    write_word_piece(folder / "tokenizer", texts=sentences, vocabulary_size=_VOCABULARY_SIZE)


def _source(folder: Path, split: str) -> dict[str, Any]:
    return {
        "kind": "delimited",
        "path": str(folder / f"{split}.tsv"),
        "text_column": "sentence",
        "label_column": "label",
        "unit_size": 4000,
    }


def write_configs(folder: Path) -> dict[str, Path]:
    """Write the experiments of the trial and return their files."""
    common = {"source": _source(folder, "train"), "views": {"kind": "tokens", "length": 96}}
    training = {
        "tokenizer": str(folder / "tokenizer"),
        "evaluation": {"source": _source(folder, "test"), "every_epochs": _EPOCHS},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01},
        "schedule": {"name": "linear", "warmup_epochs": 0.3},
        "epochs": _EPOCHS,
        "batch_size": 64,
        "group_by_length": True,
        "clip_grad_norm": 1.0,
    }
    teacher = {
        "kind": "transformers",
        "head": "sequence_classifier",
        "architecture": "bert",
        "config": _TEACHER,
        "num_classes": 2,
    }
    experiments: dict[str, dict[str, Any]] = {
        "teacher": {
            "name": "sst2-trial-teacher",
            **common,
            "training": {**training, "output": str(folder / "teacher"), "student": teacher, "targets": {"kind": "hard"}},
        }
    }
    for name, student in _STUDENTS.items():
        experiments[f"{name}_hard"] = {
            "name": f"sst2-trial-{name}-hard",
            **common,
            "training": {
                **training,
                "output": str(folder / f"{name}_hard"),
                "student": {**student, "num_classes": 2},
                "targets": {"kind": "hard"},
            },
        }
        experiments[f"{name}_cached"] = {
            "name": "sst2-trial",
            "cache": str(folder / "cache"),
            **common,
            "teacher": {
                "kind": "sequence_classifier",
                "name": str(folder / "teacher"),
                "tokenizer": str(folder / "tokenizer"),
            },
            "target": {"k": 2, "codec": {"kind": "exact"}},
            "training": {
                **training,
                "output": str(folder / f"{name}_cached"),
                "student": student,
                "targets": {"kind": "cached"},
            },
        }
    return write_experiments(ROOT / folder, experiments)


def main() -> int:
    """Run the trial and print its table."""
    arguments = trial_arguments(__doc__)
    if not DATA.exists():
        sys.stderr.write(f"SKIPPED: the trial needs SST-2 in {DATA}\n")
        return 0
    started = time.monotonic()
    write_corpus(ROOT / FOLDER)
    files = write_configs(FOLDER)
    teacher = decant("train", str(files.pop("teacher")))
    labels = decant("label", str(files["bilstm_cached"]))
    students = train_seeds(files, folder=FOLDER, num_seeds=arguments.seeds)
    passes = sum(result["teacher_passes"] for results in students.values() for result in results)
    sys.stdout.write("| | right on the 872 test sentences |\n|---|---|\n")
    sys.stdout.write(table_row("teacher (transformer, 4 x 128), hard labels", [100 * teacher["top1"]], unit=" %"))
    for name, results in students.items():
        kind, target = name.split("_")
        what = {"hard": "hard labels", "cached": "cached soft labels"}[target]
        sys.stdout.write(table_row(f"{kind}, {what}", [100 * result["top1"] for result in results], unit=" %"))
    sys.stdout.write(
        f"\n{labels['num_rows']:,} sentences labelled, {labels['bytes_per_row']:.1f} bytes each, tokens included; teacher passes "
        f"while students trained: {passes}; {(time.monotonic() - started) / 60:.0f} minutes\n"
    )
    if arguments.output:
        arguments.output.write_text(json.dumps({"teacher": teacher, "labels": labels, "students": students}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
