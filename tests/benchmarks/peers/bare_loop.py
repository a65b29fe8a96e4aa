"""A labelling loop as one writes it by hand: timm, torchvision and nothing of Decant. Run as a process of its own.

Prints "ready" once the teacher is loaded, begins at a line on standard input, prints its times as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data.config import resolve_data_config
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Pictures(Dataset[torch.Tensor]):
    """Paths to the teacher's evaluation view, uint8 [3, H, W]."""

    def __init__(self, paths: Sequence[Path], *, size: int, crop_fraction: float) -> None:
        self._paths = paths
        self._transform = transforms.Compose(
            [
                transforms.Resize(int(size / crop_fraction), transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(size),
                transforms.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self._paths[index]) as image:
            pixels: torch.Tensor = self._transform(image.convert("RGB"))
        return pixels


def _batches_of_threads(pictures: Pictures, *, batch_size: int, num_threads: int) -> Iterator[torch.Tensor]:
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[torch.Tensor]] = deque()
        numbers = iter(range(len(pictures)))
        while True:
            waiting.extend(pool.submit(pictures.__getitem__, number) for number in islice(numbers, 3 * batch_size - len(waiting)))
            if not waiting:
                return
            yield torch.stack([waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))])


def main() -> None:
    """Label the pictures of a list and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", type=Path, required=True, help="text file of picture paths")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("INDEX", "COUNT"), help="which share of the list")
    parser.add_argument("--model", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--num-classes", type=int, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--torch-threads", type=int, required=True)
    parser.add_argument("--decode-threads", type=int, default=0)
    parser.add_argument("--loader-workers", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="labels, .npz")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.torch_threads)
    paths = [Path(line) for line in arguments.list.read_text().splitlines()]
    index, count = arguments.share
    paths = paths[len(paths) * index // count : len(paths) * (index + 1) // count]
    model = timm.create_model(arguments.model, num_classes=arguments.num_classes).eval()
    model.load_state_dict(load_file(arguments.checkpoint))
    settings = resolve_data_config({}, model=model)
    mean, std = (torch.tensor(settings[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    pictures = Pictures(paths, size=settings["input_size"][1], crop_fraction=settings["crop_pct"])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    started = time.time()
    if arguments.loader_workers:
        batches: Iterator[torch.Tensor] = iter(
            DataLoader(pictures, batch_size=arguments.batch_size, num_workers=arguments.loader_workers)
        )
    else:
        batches = _batches_of_threads(pictures, batch_size=arguments.batch_size, num_threads=arguments.decode_threads)
    kept = []
    with torch.inference_mode():
        for pixels in batches:
            logits = model(pixels.float().div_(255).sub_(mean).div_(std))
            kept.append(torch.topk(torch.softmax(logits, dim=1), arguments.k, dim=1))
    ended = time.time()
    probs, class_ids = (torch.cat(column).numpy() for column in zip(*kept, strict=True))
    np.savez(arguments.output, probs=probs, class_ids=class_ids)
    sys.stdout.write(json.dumps({"started": started, "ended": ended, "num_rows": len(probs)}) + "\n")


if __name__ == "__main__":
    main()
