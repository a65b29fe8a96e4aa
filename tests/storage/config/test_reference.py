"""docs/configuration.md follows the config classes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from storage.config import ExperimentConfig
from storage.config.load import parse_config
from storage.config.reference import render_reference
from storage.config.schema import item_sections, sections

ROOT = Path(__file__).parents[3]


def dotted_keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    keys = set()
    for name, field in model.model_fields.items():
        keys.add(f"{prefix}{name}")
        for section in sections(field.annotation):
            keys |= dotted_keys(section, f"{prefix}{name}.")
        for section in item_sections(field.annotation):
            keys |= dotted_keys(section, f"{prefix}{name}.*.")
    return keys


def test_the_page_is_up_to_date():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == render_reference(), "config classes have changed: run make docs"


def test_the_command_writes_the_page():
    result = subprocess.run([sys.executable, "-m", "storage.config.reference"], cwd=ROOT, capture_output=True, check=True)
    assert result.stdout.decode() == render_reference()
    assert not result.stderr


def test_every_key_is_listed_or_linked():
    page = render_reference()
    listed = set(re.findall(r"^\| `([a-z_.*]+)`", page, flags=re.MULTILINE))
    links = re.findall(r"^It takes the keys of \[`([a-z_.*]+)`\]\(#[a-z_]+\): `([a-z_.*]+)\.` in place", page, flags=re.MULTILINE)
    for first, other in links:
        assert first != other, "a section refers to itself"
        listed |= {other + key.removeprefix(first) for key in listed if key.startswith(f"{first}.")}
    assert listed == dotted_keys(ExperimentConfig)


def test_every_row_has_all_four_cells():
    rows = [line for line in render_reference().splitlines() if line.startswith("| `")]
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))]
        assert len(cells) == 4, row
        assert all(cells), f"a description is missing: {row}"


@pytest.mark.parametrize(
    "row",
    [
        "| `name` | string matching ^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$ | required | Name of the experiment; the label set can be found by it. |",
        "| `views.size` | list of 2 integers >= 1 and <= 16384, or null | `null` | Height and width of the views; null: the teacher's input size. |",
        "| `views` | section of kind evaluation, random_resized_crop, tokens or masked_tokens | `{kind: evaluation}` | Views of each picture or text that are labelled. |",
        "| `training.optimizer.learning_rate` | number > 0 | `0.001` | Peak learning rate. |",
        "| `training.loss` | section | its defaults | Distillation loss and hard-label mix. |",
        "| `target.kind` | soft_labels | `soft_labels` | Sparse soft labels. |",
        "| `target.kind` | embeddings | required | One vector a sample. |",
        "| `training.student.kind` | timm | `timm` | A network of pictures. |",
        "| `target.codec.kind` | compact | required | Square-root grid. |",
    ],
)
def test_rows(row):
    assert row in render_reference().splitlines()


def test_the_example_of_the_introduction_is_valid():
    (example,) = re.findall(r"```yaml\n(.*?)```", render_reference(), flags=re.DOTALL)
    parse_config(yaml.safe_load(example), origin="introduction")
