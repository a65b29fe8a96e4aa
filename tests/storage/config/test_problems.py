"""Bad configs and exactly what is said about them."""

from pathlib import Path
from textwrap import dedent

import pytest

from storage.config.load import parse_config
from storage.errors import ConfigError

TRAINING = {"output": "runs/x", "student": {"name": "vit_tiny_patch16_224"}, "targets": {"kind": "hard"}}
SOURCE = {"kind": "image_folder", "path": "pictures"}

TEXTS = {"kind": "text", "path": "y"}
CASES = {
    "unknown keys at every level": (
        {
            "name": "x",
            "sorce": {},
            "xyz": 1,
            "source": {**SOURCE, "pth": "y", "image_column": "z"},
            "target": {"codec": {"kind": "compact", "level": 3}},
            "training": {**TRAINING, "evaluation": {"source": {**SOURCE, "unit": 1}, "every_epoch": 2}},
        },
        """\
        source.pth = "y": unknown key. Did you mean 'path'?
        source.image_column = "z": unknown key. It belongs to kind parquet, not to image_folder.
        target.codec.level = 3: unknown key. Did you mean 'levels'?
        training.evaluation.source.unit = 1: unknown key. Did you mean 'unit_size'?
        training.evaluation.every_epoch = 2: unknown key. Did you mean 'every_epochs'?
        sorce = {}: unknown key. Did you mean 'source'?
        xyz = 1: unknown key. Valid names: cache, generation, name, source, target, targets, teacher, training, views.""",
    ),
    "unknown and missing kinds": (
        {
            "name": "x",
            "source": {"kind": "image_foldr", "path": "y"},
            "views": {"size": [1, 1]},
            "target": {"codec": {"kind": 8}},
            "teacher": {"kind": "tim", "name": "y"},
            "training": {**TRAINING, "targets": "hard"},
        },
        """\
        source.kind = "image_foldr": expected image_folder, webdataset, parquet, text, jsonl or delimited. Did you mean 'image_folder'?
        teacher.kind = "tim": expected timm, transformers, factory, masked_lm, causal_lm, sequence_classifier or text_factory. Did you mean 'timm'?
        views.kind: missing; expected evaluation, random_resized_crop, tokens or masked_tokens
        target.codec.kind = 8: expected exact, compact, sampled, threshold or dense
        training.targets = "hard": expected section of kind cached, hard or live""",
    ),
    "missing keys": (
        {"source": {"kind": "parquet"}, "training": {"targets": {"kind": "cached"}}},
        """\
        name: missing; expected string matching ^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$. Name of the experiment; the label set can be found by it.
        source.path: missing; expected string or list of strings. Local path or fsspec URL (s3://, gs://, memory://); a list is read in order.
        training.output: missing; expected string. Folder for checkpoints, metrics.jsonl, TensorBoard events and the trained student.
        training.student: missing; expected section of kind timm, transformers, mini_albert, bilstm or text_cnn. The network to train.""",
    ),
    "wrong types and values": (
        {
            "name": "two words",
            "cache": ["a"],
            "source": {**SOURCE, "path": 3, "classes": ["a", 1], "labelled": "no", "unit_size": 2.0},
            "views": {"kind": "random_resized_crop", "size": [0, 20000], "scale": [1], "ratio": "wide", "seed": 2**63},
            "target": {"k": 0, "generation_temperature": 0, "codec": {"kind": "exact", "version": 2}},
            "generation": {"workers": True, "dead_letter_limit": 2, "batch_size": "64"},
            "training": {
                **TRAINING,
                "ema_decay": 1,
                "precision": "fp8",
                "student": None,
                "schedule": [],
                "preprocessing": {"mean": [0, 1]},
            },
        },
        """\
        name = "two words": expected string matching ^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$
        cache = ["a"]: expected string, or null
        source.path = 3: expected string or list of strings
        source.classes = ["a", 1]: expected string or list of strings, or null
        source.unit_size = 2.0: expected integer >= 1
        source.labelled = "no": expected true or false
        views.size = [0, 20000]: expected list of 2 integers >= 1 and <= 16384, or null
        views.scale = [1]: expected list of 2 numbers
        views.ratio = "wide": expected list of 2 numbers
        views.seed = 9223372036854775808: expected integer >= 0 and < 2^63
        target.k = 0: expected integer >= 1 and <= 65535, or null
        target.codec.version = 2: expected 1
        target.generation_temperature = 0: expected number > 0
        generation.batch_size = "64": expected integer >= 1
        generation.workers = true: expected integer >= 1
        generation.dead_letter_limit = 2: expected number >= 0 and <= 1
        training.student = null: expected section of kind timm, transformers, mini_albert, bilstm or text_cnn
        training.schedule = []: expected section with keys name, warmup_epochs, warmup_learning_rate, min_learning_rate, decay_epochs, decay_rate
        training.preprocessing.mean = [0, 1]: expected list of 3 numbers, or null
        training.precision = "fp8": expected fp32, bf16 or fp16. Did you mean 'fp32'?
        training.ema_decay = 1: expected number > 0 and < 1, or null""",
    ),
    "checks across keys": (
        {"name": "x", "target": {"k": None, "codec": {"kind": "exact"}}},
        "target: k: null needs a codec that decides what is kept, and exact does not; give k, or codec.kind: compact",
    ),
    "a check of the whole": (
        {"name": "x", "training": TRAINING},
        "training has no samples: give source, or training.source",
    ),
    "targets of one's own name": (
        {
            "name": "x",
            "targets": {
                "labels": {"kk": 1},
                "hidden": {"kind": "hidden_states", "layers": [1, -1], "tokens": "last"},
                "other": {"kind": "hidden"},
                "flat": 3,
            },
        },
        """\
        targets.labels.kk = 1: unknown key. Did you mean 'k'?
        targets.hidden.layers = [1, -1]: expected list of integers >= 0 and <= 4096
        targets.hidden.tokens = "last": expected all, first or mean
        targets.other.kind = "hidden": expected soft_labels, hidden_states, attention, relations or embeddings. Did you mean 'hidden_states'?
        targets.flat = 3: expected mapping of sections, with keys of your own matching ^[A-Za-z][A-Za-z0-9_]{0,63}$, or null""",
    ),
    "target and targets": (
        {"name": "x", "target": {}, "targets": {"a": {}}},
        "both target and targets are given; give target for one, or targets: {name: ...} for several",
    ),
    "no target": (
        {"name": "x", "target": None},
        "neither target nor targets is given; give target for one, or targets: {name: ...} for several",
    ),
    "a picture teacher for texts": (
        {"name": "x", "source": TEXTS, "teacher": {"kind": "timm", "name": "y"}},
        "teacher.kind = timm is for pictures, but source.kind = text is for texts; change one of them",
    ),
    "a text teacher for pictures": (
        {"name": "x", "source": SOURCE, "teacher": {"kind": "masked_lm", "name": "y"}},
        "teacher.kind = masked_lm is for texts, but source.kind = image_folder is for pictures; change one of them",
    ),
    "text views of pictures": (
        {"name": "x", "source": {"kind": "parquet", "path": "y"}, "views": {"kind": "tokens"}},
        "views.kind = tokens is for texts, but source.kind = parquet is for pictures; change one of them; a parquet source is for texts where source.text_column is given",
    ),
    "texts without views": (
        {"name": "x", "source": TEXTS},
        "views: missing; source.kind = text is for texts, which have no views by default; give views.kind: tokens or masked_tokens",
    ),
    "masked labels without masks": (
        {"name": "x", "source": TEXTS, "views": {"kind": "tokens"}, "target": {"positions": "masked"}},
        "target.positions = masked, but views.kind = tokens masks nothing; use views.kind: masked_tokens, or positions: all",
    ),
    "masked labels by default": (
        {"name": "x", "teacher": {"kind": "masked_lm", "name": "y"}, "views": {"kind": "tokens"}, "targets": {"a": {}}},
        "targets.a.positions is masked by default, but views.kind = tokens masks nothing; use views.kind: masked_tokens, or positions: all",
    ),
    "labels of tokens of pictures": (
        {"name": "x", "source": SOURCE, "target": {"positions": "all"}},
        "target.positions = all: tokens, but views.kind = evaluation is for pictures; use positions: view",
    ),
    "k of a codec that draws": (
        {"name": "x", "target": {"k": 3, "codec": {"kind": "sampled"}}},
        "target: k: 3 with codec.kind sampled, which decides itself what is kept; leave k out",
    ),
    "more tensors than a block holds": (
        {"name": "x", "target": {"kind": "attention", "layers": list(range(1, 35))}},
        (
            "target: 34 layers with 3 vectors each are more than the 100 tensors that a block holds; name fewer, or share them "
            "out to several targets (targets: takes any number by name)"
        ),
    ),
    "layers out of order": (
        {"name": "x", "target": {"kind": "hidden_states", "layers": [3, 1, 3]}},
        "target: layers [3, 1, 3] must ascend, each once; write [1, 3]",
    ),
    "masks of more than everything": (
        {"name": "x", "views": {"kind": "masked_tokens", "replaced_share": 0.9, "random_share": 0.2}},
        "views: replaced_share 0.9 and random_share 0.2 sum to more than 1; lower one, what is left shows the token itself",
    ),
    "classes of plain text": (
        {"name": "x", "source": {**TEXTS, "classes": ["a"]}},
        "source: classes name the labels of documents, and plain text has none; leave classes out, or use kind jsonl",
    ),
    "long values are shortened": (
        {"name": "x", "cache": list(range(100))},
        "cache = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21...: expected string, or null",
    ),
    "half a character": (
        {"name": "x", "cache": "\ud83d"},
        "Invalid JSON: unexpected end of hex escape at line 1 column 31",
    ),
    "what JSON cannot carry": (
        {
            "name": "x",
            "generation": {"dead_letter_limit": float("nan"), 2: "y"},
            "teacher": {"kind": "timm", "name": "y", "kwargs": {"drop": [0.1, float("inf")]}},
            "cache": Path("cache"),
        },
        f"""\
        generation.dead_letter_limit: nan is not a finite number
        generation: key 2 is not a string: put it in quotes
        teacher.kwargs.drop.1: inf is not a finite number
        cache: {type(Path()).__name__} is refused: only strings, numbers, true, false, null, lists and mappings""",
    ),
}


@pytest.mark.parametrize(("data", "problems"), CASES.values(), ids=CASES)
def test_every_problem_is_reported_at_once(data, problems):
    with pytest.raises(ConfigError) as caught:
        parse_config(data, origin="x.yaml")
    first, *lines = str(caught.value).splitlines()
    assert [line.removeprefix("  ") for line in lines] == dedent(problems).splitlines()
    assert first == f"x.yaml: {len(lines)} problem{'s' if len(lines) > 1 else ''}"
