"""Real pictures, real tiny teachers and whole `decant` commands for tests of label generation."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import timm
import torch
from PIL import Image

from storage.config import ExperimentConfig

ROOT = Path(__file__).parents[2]
CLASSES = ("blue", "green", "red")
TEACHER_KWARGS = {"img_size": 16, "patch_size": 8, "depth": 1}


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def picture(label, number, *, size=20):
    """A noisy picture, mostly of its class's colour, as PNG."""
    rng = np.random.default_rng([label, number])
    pixels = rng.integers(0, 160, size=(size, size + number % 3, 3))
    pixels[..., 2 - label] += 95
    return png(pixels)


def plain(colour, *, size=20):
    """A picture of one colour."""
    return png(np.full((size, size, 3), colour))


def bomb(*, size=60_000):
    """A PNG of under 100 bytes that announces size x size pixels."""
    data = bytearray(png(np.zeros((1, 1, 3))))
    header = b"IHDR" + size.to_bytes(4) + size.to_bytes(4) + bytes(data[24:29])
    return bytes(data[:12]) + header + zlib.crc32(header).to_bytes(4) + bytes(data[33:])


def write_folder(folder, *, per_class=8):
    """Pictures in class folders."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            (folder / name / f"{number:03d}.png").write_bytes(picture(label, number))
    return folder


def tar_bytes(members):
    """A USTAR tar of (name, bytes) members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def shard_bytes(numbers):
    """A WebDataset shard with a labelled picture for each number."""
    members = []
    for number in numbers:
        members += [(f"{number:06d}.png", picture(number % 3, number)), (f"{number:06d}.cls", str(number % 3).encode())]
    return tar_bytes(members)


def write_parquet(path, *, num_rows, row_group_size=8):
    """Pictures as Hugging Face image data sets store them."""
    rows = [{"image": {"bytes": picture(n % 3, n), "path": f"{n}.png"}, "label": n % 3} for n in range(num_rows)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)


def save_teacher(path, *, num_classes=3, seed=0):
    """Write the weights of a tiny timm model."""
    module = timm.create_model("test_vit", pretrained=False, num_classes=num_classes, **TEACHER_KWARGS)
    generator = torch.Generator().manual_seed(seed)
    state = {name: 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in module.state_dict().items()}
    safetensors.torch.save_file(state, path)
    return str(path)


def timm_teacher(checkpoint):
    return {
        "kind": "timm",
        "name": "test_vit",
        "checkpoint": str(checkpoint),
        "num_classes": 3,
        "kwargs": TEACHER_KWARGS,
        "device": "cpu",
    }


def colour_teacher(**kwargs):
    return {"kind": "factory", "name": "tests.pipelines.networks:colours", "kwargs": kwargs, "device": "cpu"}


def folder_source(path, *, unit_size=8, **options):
    return {"kind": "image_folder", "path": str(path), "unit_size": unit_size, **options}


def experiment(*, cache, source, teacher, views=2, **sections):
    """The data of a config; `views` is their number, or the whole section."""
    if isinstance(views, int):
        views = {"kind": "random_resized_crop", "count": views, "scale": [0.3, 1.0]}
    return {
        "name": "tiny",
        "cache": str(cache),
        "source": source,
        "teacher": teacher,
        "views": views,
        **sections,
        "target": {"k": 2, **sections.get("target", {})},
        "generation": {"batch_size": 4, "views_per_part": 2, "torch_threads": 1, **sections.get("generation", {})},
    }


def config_of(data):
    """The config of an experiment's data."""
    return ExperimentConfig.model_validate_json(json.dumps(data))


def write_config(path, data):
    """Write an experiment; JSON is YAML."""
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
    return str(path)


def start_decant(*words, before="", **options):
    """Start the command line in a process of its own, in a group of its own, as a shell does.

    `before` is code that runs in that process first. Not `preexec_fn`: a fork of this process with its threads may lock up.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    command = [sys.executable, "-W", "error", "-m", "decant", *words]
    if before:
        command = [sys.executable, "-c", f"import os, sys\n{before}\nos.execv(sys.argv[1], sys.argv[1:])", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **{**pipes, **options})


def run_decant(*words, timeout=120, **options):
    """Run the command line to its end; return exit status, output and errors."""
    process = start_decant(*words, **options)
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output, errors


def snapshot(cache):
    """Every file that readers may see, with its bytes: parts, records, label sets and names."""
    cache = Path(cache)
    files = [file for folder in ("requests", "label_sets", "names") for file in (cache / folder).rglob("*") if file.is_file()]
    return {str(file.relative_to(cache)): file.read_bytes() for file in files if not file.name.startswith(".")}
