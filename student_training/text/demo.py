"""`decant demo --text`: a language model, its labels, and students with and without them, on the text that comes with Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from student_training.demo_support import (
    Command,
    fresh_folder,
    names_of_demo,
    say_next,
    seeds_in_words,
    spread,
    write_experiments,
)
from student_training.text.word_piece import write_word_piece

_TEST_EVERY = 6
_VOCABULARY_SIZE = 1000
_LENGTH = 64
_MASK_VIEWS = 5
TEACHER_EPOCHS = 8
STUDENT_EPOCHS = 5


def write_documents(folder: Path) -> tuple[int, int]:
    """Write the paragraphs of Python's own documentation topics, one a line, and return (train, test) counts.

    Every sixth topic is for testing.
    """
    from pydoc_data.topics import topics

    folder.mkdir(parents=True, exist_ok=True)
    counts = []
    for split, is_test in (("train", False), ("test", True)):
        paragraphs = [
            " ".join(paragraph.split())
            for index, name in enumerate(sorted(topics))
            if (index % _TEST_EVERY == 0) == is_test
            for paragraph in topics[name].split("\n\n")
        ]
        # Section titles and rules say little.
        kept = [paragraph for paragraph in paragraphs if len(paragraph) > 20]
        (folder / f"{split}.txt").write_text("".join(f"{paragraph}\n" for paragraph in kept), encoding="utf-8")
        counts.append(len(kept))
    return counts[0], counts[1]


def _network(*, width: int, layers: int, heads: int, dropout: float) -> dict[str, Any]:
    return {
        "kind": "transformers",
        "head": "masked_lm",
        "architecture": "bert",
        "config": {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "max_position_embeddings": _LENGTH,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        },
    }


def _training(folder: Path, *, output: str, epochs: int, student: Mapping[str, Any], learning_rate: float) -> dict[str, Any]:
    return {
        "output": str(folder / output),
        "student": dict(student),
        "tokenizer": str(folder / "tokenizer"),
        "evaluation": {"source": {"kind": "text", "path": str(folder / "documents/test.txt")}, "every_epochs": epochs},
        "optimizer": {"name": "adamw", "learning_rate": learning_rate, "weight_decay": 0.01},
        "schedule": {"name": "linear", "warmup_epochs": epochs / 10},
        "epochs": epochs,
        "batch_size": 16,
        "clip_grad_norm": 1.0,
        "checkpoint_every_steps": 500,
    }


def write_configs(folder: Path) -> dict[str, Path]:
    """Write the experiments of the demo, as anybody would write them, and return their files."""
    documents = {"kind": "text", "path": str(folder / "documents/train.txt"), "unit_size": 512}
    views = {"kind": "masked_tokens", "length": _LENGTH, "layout": "pack"}
    student = _network(width=64, layers=2, heads=2, dropout=0.0)
    teacher = _training(
        folder,
        output="teacher",
        epochs=TEACHER_EPOCHS,
        student=_network(width=128, layers=2, heads=4, dropout=0.1),
        learning_rate=2e-3,
    )
    distilled = _training(folder, output="student-distilled", epochs=STUDENT_EPOCHS, student=student, learning_rate=4e-3)
    hard = _training(folder, output="student-hard", epochs=STUDENT_EPOCHS, student=student, learning_rate=4e-3)
    return write_experiments(
        folder,
        {
            "teacher": {
                "name": "topics-teacher",
                "source": documents,
                "views": views,
                "training": {**teacher, "targets": {"kind": "hard"}},
            },
            "distilled": {
                "name": "topics",
                "cache": str(folder / "cache"),
                "source": documents,
                "teacher": {"kind": "masked_lm", "name": str(folder / "teacher"), "tokenizer": str(folder / "tokenizer")},
                "views": {**views, "count": _MASK_VIEWS},
                "target": {"codec": {"kind": "threshold"}},
                "training": {**distilled, "targets": {"kind": "cached"}, "terms": [{"kind": "soft_labels"}]},
            },
            "hard": {
                "name": "topics-hard",
                "source": documents,
                "views": views,
                "training": {**hard, "targets": {"kind": "hard"}},
            },
        },
    )


def run_text_demo(folder: str, *, command: Command, num_seeds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the demo and return its figures.

    Args:
        folder: where everything is written; what an earlier demo wrote there is replaced, all else is left.
        command: runs a decant command.
        num_seeds: students of each kind.
        say: takes each line a person should read.

    Raises:
        DecantError: the folder holds something else, or a command failed.
    """
    root = fresh_folder(folder, names=names_of_demo("documents", "tokenizer", num_seeds=num_seeds), num_seeds=num_seeds)
    num_train, num_test = write_documents(root / "documents")
    texts = (root / "documents/train.txt").read_text(encoding="utf-8").splitlines()
    write_word_piece(root / "tokenizer", texts=texts, vocabulary_size=_VOCABULARY_SIZE)
    files = write_configs(root)
    say(f"1/4 {num_train:,} paragraphs of Python's documentation to learn from, {num_test:,} to test on, in {root / 'documents'}")
    teacher = command(["train", str(files["teacher"])])
    say(f"2/4 teacher trained on masked words: {100 * teacher['top1']:.2f} % right, perplexity {teacher['perplexity']:.1f}")
    labels = command(["label", str(files["distilled"])])
    say(
        f"3/4 labels: {labels['num_rows']:,} sequences ({_MASK_VIEWS} masks each) in {labels['seconds']:.1f} s, "
        f"{labels['bytes_per_position']:.1f} bytes a masked word, the text included"
    )
    students: dict[str, list[Mapping[str, Any]]] = {"hard": [], "distilled": []}
    for seed in range(num_seeds):
        for kind, found in students.items():
            output = root / f"student-{kind}-{seed}"
            found.append(
                command(["train", str(files[kind]), "--set", f"training.seed={seed}", "--set", f"training.output={output}"])
            )
            say(f"4/4 student, {kind}, seed {seed}: perplexity {found[-1]['perplexity']:.1f}")
    teacher_passes = sum(result["teacher_passes"] for results in students.values() for result in results)
    rows = {
        "teacher, masked words": [teacher],
        "student, masked words": students["hard"],
        "student, cached soft labels": students["distilled"],
    }
    say("")
    say(f"{'':<32}{'right on test text':>22}{'perplexity':>20}")
    for name, results in rows.items():
        right = spread([100 * result["top1"] for result in results], unit=" %")
        say(f"{name:<32}{right:>22}{spread([result['perplexity'] for result in results], unit=''):>20}")
    say("")
    say(seeds_in_words(num_seeds))
    say(f"sequences labelled: {labels['num_rows']:,}; bytes a sequence, its text included: {labels['bytes_per_row']:.1f}")
    say(f"teacher passes while students trained: {teacher_passes}")
    say_next(say, root=root, experiment="topics", distilled=files["distilled"])
    return {
        "teacher_perplexity": teacher["perplexity"],
        "hard_perplexity": [result["perplexity"] for result in students["hard"]],
        "distilled_perplexity": [result["perplexity"] for result in students["distilled"]],
        "num_rows": labels["num_rows"],
        "bytes_per_row": labels["bytes_per_row"],
        "teacher_passes_in_training": teacher_passes,
        "seconds_labelling": labels["seconds"],
    }
