"""Whether a label set serves what an experiment asks for."""

from __future__ import annotations

from typing import Any

from storage.config import ExperimentConfig
from storage.config.labels import RandomViewsConfig
from storage.errors import MismatchError
from storage.label_set import LabelSet


def check_serves(label_set: LabelSet, *, config: ExperimentConfig, sections: set[str] | None = None) -> None:
    """Refuse a label set that does not hold what the config's views and target say. Values left open in the config match any.

    Args:
        sections: of "views" and "target", those that are compared; None: both.

    Raises:
        MismatchError: every field that differs, with both values.
    """
    request = label_set.manifest.request
    asked: dict[str, Any] = {}
    holds: dict[str, Any] = {}
    if sections is None or "views" in sections:
        asked |= {"views.kind": config.views.kind, "views.count": config.views.count}
        holds |= {"views.kind": request.view.kind, "views.count": label_set.manifest.num_views}
        if isinstance(config.views, RandomViewsConfig):
            names = ("size", "scale", "ratio", "flip_probability", "interpolation", "seed")
            given = {name: getattr(config.views, name) for name in names if getattr(config.views, name) is not None}
            asked |= {f"views.{name}": value for name, value in given.items()}
            holds |= {f"views.{name}": getattr(request.view, name, None) for name in given}
    if sections is None or "target" in sections:
        for name in ("k", "codec", "generation_temperature"):
            asked[f"target.{name}"] = getattr(config.target, name)
            holds[f"target.{name}"] = getattr(request.target, name)
    differing = [
        f"  {name}: the config asks for {value!r}, the label set holds {holds[name]!r}"
        for name, value in asked.items()
        if value != holds[name]
    ]
    if differing:
        raise MismatchError(
            f"label set {label_set.manifest.name!r} ({label_set.manifest.id}) does not serve this config:\n"
            + "\n".join(differing)
            + "\nRun decant label with this config, or name another label set in training.targets.label_set"
        )
