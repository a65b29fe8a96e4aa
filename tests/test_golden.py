"""Files of every format version stay readable, and what is written today is what was written then."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

from storage.cache import Cache
from storage.label_set import LabelSet
from storage.specs import Float16Codec, HiddenStatesSpec, SoftLabelsSpec
from storage.verify import verify
from tests.golden import texts
from tests.golden.plain_reader import read_head, read_targets
from tests.golden.texts import CASES, HEAD
from tests.golden.writer import KEYS, LABELS, NAMES, ROTATION, TARGETS, VERSION, decode, write_golden

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.glob("v*"))


def read_decoded(version):
    return json.loads((GOLDEN / version / "decoded.json").read_text(encoding="utf-8"))


def assert_alike(found, expected, *, path=""):
    """Fail unless JSON data is equal, floats up to the rounding of one float32 operation."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=3e-7, abs=0), path
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for name in expected:
            assert_alike(found[name], expected[name], path=f"{path}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_alike(one, other, path=f"{path}[{index}]")
    else:
        assert found == expected, path


def test_there_are_files_of_this_version():
    assert VERSION in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_files_of_every_version_decode_to_what_they_said(version):
    cache = Cache.at(str(GOLDEN / version / "cache"))
    expected = read_decoded(version)["label_sets"]
    assert sorted(cache.names()) == sorted(expected)
    for name, decoded in expected.items():
        assert_alike(json.loads(json.dumps(decode(cache, name))), decoded)
        label_set = LabelSet.open(cache, name_or_id=name)
        assert verify(label_set).problems == ()
        assert cache.request(label_set.manifest.request.fingerprint()) == label_set.manifest.request


def test_the_head_is_the_one_that_was_written():
    found = Cache.at(str(GOLDEN / VERSION / "cache")).head(HEAD.sha256())
    said = read_decoded(VERSION)["head"]
    assert (found.spec, said["spec"], said["sha256"]) == (HEAD.spec, HEAD.spec.to_json(), HEAD.sha256())
    for name, values in HEAD.tensors.items():
        assert np.array_equal(found.tensors[name].view(np.uint32), values.view(np.uint32))
        assert np.array_equal(np.float32(said["tensors"][name]), values)


@pytest.mark.parametrize("name", TARGETS)
def test_the_rows_are_those_that_were_written(name):
    # decoded.json comes from the code under test; the rows in writer.py do not.
    _, target, said = TARGETS[name]
    (part,) = read_decoded(VERSION)["label_sets"][name]["parts"]
    assert (part["keys"], part["labels"]) == (list(KEYS), list(LABELS))
    seen = set()
    for block in part["blocks"]:
        for position, row, rest in zip(block["positions"], block["rows"], block["rest"], strict=True):
            expected = said[ROTATION[position] if block["view"] else position]
            kept = dict(row)
            seen.add((position, block["view"]))
            if name == "exact":
                assert list(kept) == [class_id for class_id, prob in expected.items() if prob]
                for class_id, prob in kept.items():
                    assert prob == pytest.approx(expected[class_id], rel=2**-11 * abs(math.log(expected[class_id])) + 1e-3)
                assert rest == pytest.approx(1 - sum(expected.values()), rel=5e-3, abs=1e-6)
                continue
            levels = target.codec.levels
            grid = {class_id: round(levels * math.sqrt(prob)) for class_id, prob in sorted(expected.items())}
            grid = {class_id: level for class_id, level in grid.items() if level}
            left = max(0.0, 1 - sum(prob for class_id, prob in expected.items() if class_id in grid))
            rest_level = max(round(levels * math.sqrt(left)), 1 if left > 1e-12 else 0)
            mass = sum(level**2 for level in grid.values()) + rest_level**2
            assert list(kept) == list(grid)
            assert list(kept.values()) == pytest.approx([level**2 / mass for level in grid.values()], rel=1e-6)
            assert rest == pytest.approx(rest_level**2 / mass, rel=1e-6)
    views = 1 if name == "quality" else 2
    dead = {(1, 0), (1, 1), (3, 1)}
    assert seen == {(position, view) for view in range(views) for position in range(len(KEYS))} - dead


def check_labels(block, *, start, position, count, target, view):
    """Fail unless rows of a sample are those that `texts.said` gives, as its codec stores them."""
    for row in range(count):
        said = texts.said(position, row=row, view=view)
        if target.k is not None:
            said = dict(list(said.items())[: target.k])
        kept, rest = dict(block["rows"][start + row]), block["rest"][start + row]
        # Steps of the square root: of 255, of 20, or fine enough to be exact here.
        step = {"compact": 1 / getattr(target.codec, "levels", 1), "exact": 1e-3, "dense": 1e-3}.get(target.codec.kind, 1e-6)
        assert kept.keys() == {class_id for class_id, prob in said.items() if prob}
        for class_id, prob in kept.items():
            assert math.sqrt(prob) == pytest.approx(math.sqrt(said[class_id]), abs=step)
        assert math.sqrt(rest) == pytest.approx(math.sqrt(1 - sum(said.values())), abs=step)


def check_vectors(block, *, start, position, count, target, view):
    for index, (name, width) in enumerate(target.tensors.items()):
        for row in range(count):
            said = [texts.number(index, position=position, row=row, channel=channel, view=view) for channel in range(width)]
            # Numbers are below 3: a step of int8 is below 1 / 40.
            error = 0 if isinstance(target.codec, Float16Codec) else 1 / 80
            assert block["tensors"][name][start + row] == pytest.approx(said, abs=error)


def rows_of_sample(target, *, position, view):
    """Rows a sample has, counted by hand."""
    length = len(texts.TEXTS[position])
    if isinstance(target, SoftLabelsSpec):
        masked = len(texts.MASKED_PLACES[view][position])
        return {"view": 1, "masked": masked, "all": length, "next": length - 1}[target.positions]
    if target.kind == "relations":
        return length * (length + 1) // 2
    return length if target.kind == "attention" or getattr(target, "tokens", None) == "all" else 1


@pytest.mark.parametrize("name", CASES)
def test_the_rows_of_tokens_are_those_that_were_written(name):
    case = CASES[name]
    of_pictures = case.view == texts.PICTURES
    (part,) = read_decoded(VERSION)["label_sets"][name]["parts"]
    assert (part["keys"], part["labels"]) == (list(texts.KEYS), list(texts.LABELS))
    seen = []
    for block in part["blocks"]:
        start, view = 0, block["view"]
        for index, position in enumerate(block["positions"]):
            seen.append((view, position))
            if of_pictures:
                count = texts.TOKENS_PER_PICTURE
            else:
                count = rows_of_sample(case.target, position=position, view=view)
                ids = block["token_ids"][block["token_offsets"][index] : block["token_offsets"][index + 1]]
                first = 69_000 if case.view == texts.WIDE else 0
                assert ids == [texts.TEXTS[position][0] + first, *texts.TEXTS[position][1:]]
            if "mask_offsets" in block:
                bounds = slice(*block["mask_offsets"][index : index + 2])
                places = texts.MASKED_PLACES[view][position]
                assert block["mask_positions"][bounds] == list(places)
                assert block["mask_inputs"][bounds] == [texts.MASK_ID if place % 2 else 9 + place for place in places]
            assert block["row_offsets"][index : index + 2] == [start, start + count]
            check = check_labels if isinstance(case.target, SoftLabelsSpec) else check_vectors
            check(block, start=start, position=position, count=count, target=case.target, view=view)
            start += count
        assert block["row_offsets"][-1] == start
    everything = {(view, position) for view in range(case.num_views) for position in range(len(texts.KEYS))}
    assert set(seen) == everything - ({(texts.DEAD_VIEW, texts.DEAD_KEY)} if case.num_views == 2 else set())
    assert seen == sorted(seen)


@pytest.mark.parametrize("name", CASES)
def test_a_reader_written_from_the_description_alone_reads_the_same(name):
    cache = Cache.at(str(GOLDEN / VERSION / "cache"))
    (part,) = read_decoded(VERSION)["label_sets"][name]["parts"]
    tar = cache.store.read(LabelSet.open(cache, name_or_id=name).tar_path(0))
    for extent, expected in zip(part["record"]["blocks"], part["blocks"], strict=True):
        assert_alike(read_targets(tar[extent["offset"] :][: extent["num_bytes"]]), expected)


def test_a_reader_written_from_the_description_alone_reads_the_same_head():
    data = (GOLDEN / VERSION / "cache" / "heads" / f"{HEAD.sha256()}.head").read_bytes()
    assert read_head(data) == read_decoded(VERSION)["head"]


def test_the_golden_texts_have_every_kind_once():
    targets = [case.target for case in CASES.values()]
    assert {target.kind for target in targets} == {"soft_labels", "hidden_states", "attention", "relations", "embeddings"}
    labels = [target for target in targets if isinstance(target, SoftLabelsSpec)]
    assert {target.positions for target in labels} == {"view", "masked", "all", "next"}
    assert {target.codec.kind for target in labels} == {"exact", "compact", "sampled", "threshold", "dense"}
    assert {target.tokens for target in targets if isinstance(target, HiddenStatesSpec)} == {"all", "first", "mean"}
    codecs = {(target.codec.kind, getattr(target.codec, "group", None)) for target in targets if target not in labels}
    assert codecs == {("float16", None), ("int8", None), ("int8", 8)}


def test_the_golden_cache_says_everything_once():
    label_sets = {name: read_decoded(VERSION)["label_sets"][name] for name in TARGETS}
    rows = {name: [row for block in found["parts"][0]["blocks"] for row in block["rows"]] for name, found in label_sets.items()}
    rests = {
        name: [rest for block in found["parts"][0]["blocks"] for rest in block["rest"]] for name, found in label_sets.items()
    }
    assert [] in rows["compact"]
    assert any(rest == 0 for rest in rests["exact"])
    assert any(rest == 0 for rest in rests["quality"])
    assert len({len(row) for row in rows["quality"]}) > 2


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(
    read_decoded(VERSION)["zstd"] != list(zstandard.ZSTD_VERSION), reason="another zstd may compress the same bytes to others"
)
def test_what_is_written_today_is_the_same_bytes(tmp_path):
    write_golden(tmp_path)
    now, then = files_below(tmp_path / "cache"), files_below(GOLDEN / VERSION / "cache")
    of_tables = {name for name in {*now, *then} if name.endswith((".parquet", "manifest.json"))}  # these name pyarrow's version
    assert {name: data for name, data in now.items() if name not in of_tables} == {
        name: data for name, data in then.items() if name not in of_tables
    }
    for name in NAMES:
        here, there = (LabelSet.open(Cache.at(str(folder / "cache")), name_or_id=name) for folder in (tmp_path, GOLDEN / VERSION))
        assert here.parts.equals(there.parts)
        changes = {"parts_file": there.manifest.parts_file, "parts_sha256": there.manifest.parts_sha256}
        assert here.manifest.model_copy(update=changes) == there.manifest


def test_the_same_rows_are_written_with_any_zstd(tmp_path):
    write_golden(tmp_path)
    now = json.loads((tmp_path / "decoded.json").read_text(encoding="utf-8"))["label_sets"]
    then = read_decoded(VERSION)["label_sets"]
    for name in NAMES:
        assert_alike([part["blocks"] for part in now[name]["parts"]], [part["blocks"] for part in then[name]["parts"]])
        assert_alike(now[name]["class_means"], then[name]["class_means"])


def run_writer(folder, *words):
    command = [sys.executable, "-m", "tests.golden", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_golden_files_are_not_overwritten_by_mistake_and_need_no_network_library(tmp_path):
    root = GOLDEN.parents[1]
    shutil.copytree(root / "storage", tmp_path / "storage", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(GOLDEN, tmp_path / "tests" / "golden", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "torch.py").write_text("raise ImportError('golden files need no torch')", encoding="utf-8")
    before = files_below(tmp_path / "tests")
    refused = run_writer(tmp_path)
    assert refused.returncode == 1
    assert f"{VERSION} exists" in refused.stderr
    assert {name: data for name, data in files_below(tmp_path / "tests").items() if "__pycache__" not in name} == before
    (tmp_path / "tests" / "golden" / VERSION / "decoded.json").unlink()
    forced = run_writer(tmp_path, "--force")
    assert forced.returncode == 0, forced.stderr
    assert (tmp_path / "tests" / "golden" / VERSION / "decoded.json").exists()


def test_decoded_floats_are_exact_binary32():
    (part,) = read_decoded(VERSION)["label_sets"]["exact"]["parts"]
    values = [prob for block in part["blocks"] for row in block["rows"] for _, prob in row]
    assert all(float(np.float32(value)) == value for value in values)
