"""Write docs/configuration.md from the config models: `python -m storage.config.reference > docs/configuration.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from storage.config.experiment import ExperimentConfig
from storage.config.kinds import kind_meant
from storage.config.schema import describe_field, is_nullable, item_sections, kind_of, one_of, sections

INTRODUCTION = """\
# Configuration

One YAML file describes one experiment: what is labelled, by whom, and which student learns from it. `decant label` needs `cache`,
`source` and `teacher`; `decant train` needs `training`. The files under `configs/` are examples.

```yaml
name: flowers
cache: runs/cache
source: {kind: image_folder, path: data/flowers/train}
teacher: {kind: timm, name: vit_base_patch16_224}
target: {k: 10}
```

- The whole file is checked before any work starts, and everything that is wrong is reported at once: the key, its value, what is
  allowed and, for a key that does not exist, the nearest one that does.
- Any key can be set on the command line with `--set a.b.c=value`, the value written as YAML: `--set training.epochs=3`,
  `--set "source.path=[train-a, train-b]"`, `--set training.evaluation=null`.
  Later ones win; absent sections on the way are made.
- Relative paths are relative to the working directory of the command, not to the file. Environment variables are not expanded.
- A section with several kinds takes the keys of the kind that its `kind` names, and no others.
- YAML is read as YAML 1.2 reads it: `1e-3` is a number, `no` is a string, `010` is ten. Tags and duplicate keys are refused.
  Anchors, aliases and `<<` work.
- Types are strict: `"3"` is no integer and `1` is no truth value. An integer does for a number.

This page is made from the config classes in `storage/config/` by `make docs`.
"""


def render_reference() -> str:
    """Return the Markdown of docs/configuration.md: an introduction and every key with type, default and description."""
    lines = [INTRODUCTION, "## Top level", "", *_table(ExperimentConfig, prefix="")]
    seen: dict[tuple[type[BaseModel], ...], str] = {}
    for name, field in ExperimentConfig.model_fields.items():
        lines += _section(field, path=name, depth=2, seen=seen)
    return "\n".join(lines) + "\n"


def _section(field: FieldInfo, *, path: str, depth: int, seen: dict[tuple[type[BaseModel], ...], str]) -> Iterator[str]:
    """Yield the lines of a section and of those inside it; one met before is only linked. `*` stands for entries of a list."""
    variants = sections(field.annotation)
    if not variants:
        variants, path = item_sections(field.annotation), f"{path}.*"
    # Variants of a section may share one of their own: their keys are the same ones.
    if not variants or seen.get(variants) == path:
        return
    yield from ("", f"{'#' * depth} {path}", "", *_heading(field))
    if variants in seen:
        first = seen[variants]
        yield from ("", f"It takes the keys of [`{first}`](#{_anchor(first)}): `{path}.` in place of `{first}.`.")
        return
    seen[variants] = path
    for variant in variants:
        if len(variants) > 1:
            yield from ("", f"{'#' * (depth + 1)} {path}, kind: {kind_of(variant)}", "", _text(variant.__doc__ or ""))
        else:
            yield from ("", _text(variant.__doc__ or ""))
        kind = _kind_default(variant, field=field) if len(variants) > 1 else None
        yield from ("", *_table(variant, prefix=f"{path}.", kind_default=kind))
    for variant in variants:
        for name, inner in variant.model_fields.items():
            yield from _section(inner, path=f"{path}.{name}", depth=depth + 1, seen=seen)


def _anchor(heading: str) -> str:
    return heading.replace(".", "").replace("*", "")


def _heading(field: FieldInfo) -> Iterator[str]:
    notes = [field.description or ""]
    variants = sections(field.annotation) or item_sections(field.annotation)
    if len(variants) > 1:
        notes.append(f"Its `kind` is {one_of(f'`{kind_of(variant)}`' for variant in variants)}.")
    if field.is_required():
        notes.append("Required.")
    elif is_nullable(field.annotation):
        notes.append("Optional.")
    yield " ".join(notes)


def _kind_default(variant: type[BaseModel], *, field: FieldInfo) -> str:
    """Return what stands for the default of a variant's kind: it finds the variant, even where the class has a default."""
    kind = kind_of(variant)
    return f"`{kind}`" if kind == kind_meant(field) else "required"


def _table(section: type[BaseModel], *, prefix: str, kind_default: str | None = None) -> Iterator[str]:
    yield "| key | type | default | description |"
    yield "| --- | --- | --- | --- |"
    for name, field in sorted(section.model_fields.items(), key=lambda item: item[0] != "kind"):
        default = kind_default if kind_default is not None and name == "kind" else _default(field)
        cells = [f"`{prefix}{name}`", describe_field(field), default, field.description or ""]
        yield f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default: Any = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        kind = getattr(default, "kind", None)
        return f"`{{kind: {kind}}}`" if len(sections(field.annotation)) > 1 else "its defaults"
    if isinstance(default, str):
        return f"`{default}`"
    return f"`{json.dumps(default)}`"


def _text(docstring: str) -> str:
    return "\n".join(line.strip() for line in docstring.strip().splitlines())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.stdout.write(render_reference())
