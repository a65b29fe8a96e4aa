"""The Fashion-MNIST trial: `python -m tests.trials.fashion_mnist` (or `make trial`).

Real data from ../shared/data/fashion_mnist: a teacher on all hard labels, then, for each seed, a student from the hard labels of
10 % of the pictures and the same student from cached soft labels over all pictures. Runs the commands a user would run, with the
configs of configs/, and prints the table of the README. About half an hour on 2 cores; killed, it goes on where it was.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import webdataset
from PIL import Image

from tests.trials.support import ROOT, SHARED_DATA, decant, table_row, train_seeds, trial_arguments

DATA = SHARED_DATA / "fashion_mnist"
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


def main() -> int:
    """Run the trial and print its table."""
    arguments = trial_arguments(__doc__)
    if not DATA.exists():
        sys.stderr.write(f"SKIPPED: the trial needs Fashion-MNIST in {DATA}\n")
        return 0
    started = time.monotonic()
    write_tars(ROOT / FOLDER / "pictures")
    teacher = decant("train", "configs/fashion_mnist_teacher.yaml")
    labels = decant("label", "configs/fashion_mnist.yaml")
    configs = {name: Path("configs") / f"{name}.yaml" for name in ("fashion_mnist_hard", "fashion_mnist")}
    students = train_seeds(configs, folder=FOLDER, num_seeds=arguments.seeds)
    hard, cached = ([100 * result["top1"] for result in results] for results in students.values())
    passes = sum(result["teacher_passes"] for results in students.values() for result in results)
    sys.stdout.write("| | right on the 10,000 test pictures |\n|---|---|\n")
    sys.stdout.write(table_row("teacher, all hard labels", [100 * teacher["top1"]], unit=" %"))
    sys.stdout.write(table_row("student, hard labels of 10 %", hard, unit=" %"))
    sys.stdout.write(table_row("student, cached soft labels of all training pictures", cached, unit=" %"))
    sys.stdout.write(
        f"\n{labels['num_rows']:,} rows labelled, {labels['bytes_per_row']:.1f} bytes a row; teacher passes while students trained: "
        f"{passes}; {(time.monotonic() - started) / 60:.0f} minutes\n"
    )
    if arguments.output:
        figures = {"teacher": teacher, "labels": labels, "students": students}
        arguments.output.write_text(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
