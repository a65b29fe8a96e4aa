"""The Fashion-MNIST trial: `python -m tests.trials.fashion_mnist` (or `make trial`).

Real data from ../shared/data/fashion_mnist: a teacher on all hard labels, then, for each seed, a student from the hard labels of
10 % of the pictures and the same student from cached soft labels over all pictures. Runs the commands a user would run, with the
configs of configs/, and prints the table of the README. About half an hour on 2 cores; killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import webdataset
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "fashion_mnist"
FOLDER = Path("runs/fashion_mnist")
SAMPLES_PER_TAR = 5000


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Return the array of a gzipped IDX file of bytes."""
    data = gzip.decompress(path.read_bytes())
    (magic,) = struct.unpack(">I", data[:4])
    dimensions = magic & 0xFF
    shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_tars(folder: Path) -> None:
    """Write both splits as WebDataset tars of PNG and label; a finished folder is left alone."""
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(DATA / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(DATA / f"{prefix}-labels-idx1-ubyte.gz")
        for start in range(0, len(images), SAMPLES_PER_TAR):
            with (folder / f"{split}-{start // SAMPLES_PER_TAR:03d}.tar").open("wb") as file:
                writer = webdataset.TarWriter(file, mtime=0)
                for index in range(start, min(start + SAMPLES_PER_TAR, len(images))):
                    buffer = io.BytesIO()
                    Image.fromarray(images[index]).save(buffer, format="PNG")
                    writer.write({"__key__": f"{split}{index:05d}", "png": buffer.getvalue(), "cls": str(labels[index]).encode()})
                writer.close()
    (folder / "complete").touch()


def decant(*words: str) -> dict[str, Any]:
    """Run a decant command and return its figures."""
    sys.stderr.write(f"$ decant {' '.join(words)}\n")
    finished = subprocess.run([sys.executable, "-m", "decant", *words, "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    figures: dict[str, Any] = json.loads(finished.stdout)
    return figures


def _row(name: str, values: list[float]) -> str:
    spread = f" +- {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"| {name} | {100 * statistics.mean(values):.2f}{spread} % |\n"


def main() -> int:
    """Run the trial and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind (default: 3)")
    parser.add_argument("--output", help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    if not DATA.exists():
        sys.stderr.write(f"SKIPPED: the trial needs Fashion-MNIST in {DATA}\n")
        return 0
    started = time.monotonic()
    write_tars(ROOT / FOLDER / "pictures")
    teacher = decant("train", "configs/fashion_mnist_teacher.yaml")
    labels = decant("label", "configs/fashion_mnist.yaml")
    students: dict[str, list[dict[str, Any]]] = {"fashion_mnist_hard": [], "fashion_mnist": []}
    for seed in range(arguments.seeds):
        for config, results in students.items():
            overrides = [f"training.seed={seed}", f"training.output={FOLDER}/{config}-{seed}"]
            results.append(decant("train", f"configs/{config}.yaml", "--set", overrides[0], "--set", overrides[1]))
    hard, cached = ([result["top1"] for result in results] for results in students.values())
    passes = sum(result["teacher_passes"] for results in students.values() for result in results)
    sys.stdout.write("| | right on the 10,000 test pictures |\n|---|---|\n")
    sys.stdout.write(_row("teacher, all hard labels", [teacher["top1"]]))
    sys.stdout.write(_row("student, hard labels of 10 %", hard))
    sys.stdout.write(_row("student, cached soft labels of all training pictures", cached))
    sys.stdout.write(
        f"\n{labels['num_rows']:,} rows labelled, {labels['bytes_per_row']:.1f} bytes a row; teacher passes while students trained: "
        f"{passes}; {(time.monotonic() - started) / 60:.0f} minutes\n"
    )
    if arguments.output:
        figures = {"teacher": teacher, "labels": labels, "students": students}
        Path(arguments.output).write_text(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
