"""What the trials share: running decant as a user does, and rows of a table."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"


def decant(*words: str) -> dict[str, Any]:
    """Run a decant command in the repository and return its figures."""
    sys.stderr.write(f"$ decant {' '.join(words)}\n")
    finished = subprocess.run([sys.executable, "-m", "decant", *words, "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    figures: dict[str, Any] = json.loads(finished.stdout)
    return figures


def train_seeds(configs: dict[str, Path], *, folder: Path, num_seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Train each config once a seed, seed by seed, and return the results."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in configs}
    for seed in range(num_seeds):
        for name, config in configs.items():
            output = f"training.output={folder}/{name}-{seed}"
            results[name].append(decant("train", str(config), "--set", f"training.seed={seed}", "--set", output))
    return results


def table_row(name: str, values: list[float], *, unit: str) -> str:
    """Return a row of a Markdown table: mean and standard deviation."""
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"| {name} | {statistics.mean(values):.2f}{spread}{unit} |\n"


def trial_arguments(description: str | None) -> argparse.Namespace:
    """Return what the command line of a trial says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind (default: 3)")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    return parser.parse_args()
