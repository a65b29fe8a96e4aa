"""Queries and keys of layers whose tokens see only near ones are refused where maps rebuilt from them would be wrong."""

from __future__ import annotations

import pytest
import torch

from storage.errors import ConfigError
from tests.pipelines.text.labels import Bench, forward
from tests.pipelines.text.models import documents, save_model

TEXTS = documents(9)
WINDOWS = {"modernbert": (2, 5), "gemma3": (1, 8), "mistral": (1, 8)}
"""A layer with a window, and how far its tokens see: in ModernBERT with `local_attention: 8` four places to each side."""


def bench(folder, name, *, length, layers=(1,), target=None):
    attention = {"kind": "attention", "layers": list(layers), "codec": {"kind": "float16"}}
    return Bench(
        save_model(folder, name),
        kind="masked_lm" if name == "modernbert" else "causal_lm",
        texts=TEXTS,
        views={"kind": "tokens", "length": length},
        targets={"target": target or attention},
    )


def worst_map(bench, *, layer, causal):
    """The largest difference of any rebuilt map of a layer from the model's own."""
    live = bench.live()
    spec = bench.requests["target"].target
    worst = 0.0
    for _, ids, _, values in bench.label()["target"].sequences():
        query, key = (
            torch.from_numpy(values.tensors[f"{name}.{layer}"]).float().unflatten(1, (-1, spec.head_width)).transpose(0, 1)
            for name in ("query", "key")
        )
        scores = query @ key.repeat_interleave(len(query) // len(key), dim=0).transpose(1, 2) / spec.head_width**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
        expected = forward(live, ids, output_attentions=True).attentions[layer - 1][0]
        worst = max(worst, float((scores.softmax(dim=2) - expected).abs().max()))
    return worst


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_shorter_than_the_views_is_refused_and_one_as_long_gives_the_maps(tmp_path, name, monkeypatch):
    layer, window = WINDOWS[name]
    causal = name != "modernbert"
    message = rf"^targets\.target\.layers: .* in layers {layer} \({window}\).*, and views\.length is {window + 1}: .* relations"
    with pytest.raises(ConfigError, match=message):
        bench(tmp_path / "short", name, length=window + 1, layers=[layer])
    assert worst_map(bench(tmp_path / "whole", name, length=window, layers=[layer]), layer=layer, causal=causal) < 5e-3
    monkeypatch.setattr("pipelines.feature_targets._check_windows", lambda *_, **__: None)
    assert worst_map(bench(tmp_path / "wrong", name, length=32, layers=[layer]), layer=layer, causal=causal) > 5e-2


def test_layers_that_see_everything_are_named_and_serve(tmp_path):
    with pytest.raises(ConfigError, match=r"in layers 1 \(8\), .*; choose of layers 2, give views\.length: 8, or a target"):
        bench(tmp_path / "both", "gemma3", length=32, layers=[1, 2])
    assert worst_map(bench(tmp_path / "second", "gemma3", length=32, layers=[2]), layer=2, causal=True) < 5e-3


@pytest.mark.parametrize(
    "target", [{"kind": "relations", "layer": 1}, {"kind": "attention", "layers": [1], "vectors": ["query", "value"]}]
)
def test_what_no_map_is_made_of_needs_no_window(tmp_path, target):
    assert bench(tmp_path, "mistral", length=32, target=target).requests["target"].target.kind == target["kind"]
