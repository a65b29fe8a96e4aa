"""`decant plan`, `label` and `cache` over texts, with real tiny language models."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.pipelines.support import start_decant, write_config
from tests.pipelines.text.models import documents, save_model
from tests.pipelines.text.networks import touchy_teacher

pytestmark = pytest.mark.integration

MASKS = {"kind": "masked_tokens", "length": 32, "count": 2, "seed": 1}
TARGETS = {
    "labels": {"k": 5},
    "hidden": {"kind": "hidden_states", "layers": [1, 2]},
}


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A masked language model with its tokenizer; not to be changed."""
    return save_model(tmp_path_factory.mktemp("teacher") / "bert", "bert")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """40 documents, in 4 units of 10; not to be changed."""
    file = tmp_path_factory.mktemp("source") / "corpus.txt"
    file.write_text("".join(f"{text}\n" for text in documents(40)))
    return file


@pytest.fixture
def made(tmp_path, bert, corpus):
    """Write a config whose parts can be changed; the cache is `tmp_path/cache`."""

    def make(file="config", **changes):
        data = {
            "name": "texts",
            "cache": str(tmp_path / "cache"),
            "source": {"kind": "text", "path": str(corpus), "unit_size": 10},
            "teacher": {"kind": "masked_lm", "name": str(bert), "device": "cpu"},
            "views": MASKS,
            "target": TARGETS["labels"],
            "generation": {"batch_size": 4, "torch_threads": 1},
            **changes,
        }
        return write_config(tmp_path / f"{file}.json", {name: value for name, value in data.items() if value is not None})

    return make


def tars(folder):
    return {path.name: path.read_bytes() for path in (folder / "requests").rglob("*.tar")}


def test_a_corpus_is_planned_labelled_shown_and_verified(command, made, tmp_path):
    config = made()
    planned = command("plan", config)
    assert planned.status == 0, planned.err
    assert "40 documents in 4 units, 2 views each" in planned.out
    assert re.search(r"bytes +[0-9.]+ a document \(1.00 sequences\), [0-9.]+ a token with values, measured on 10", planned.out)
    estimate = command("plan", config, "--json").json["estimate"]
    ended = command("label", config, "--json")
    assert ended.status == 0, ended.err
    report = ended.json
    assert (report["num_samples"], report["num_rows"], report["num_computed_rows"]) == (40, 80, 80)
    assert report["num_positions"] > 80
    assert 0 < report["agreement"] < 1
    assert estimate["total_bytes"] == pytest.approx(report["parts_bytes"], rel=0.4)
    assert command("plan", config, "--json").json["estimate"] is None
    again = command("label", config)
    assert "nothing to do, all 80 rows are in the cache" in again.out
    shown = command("cache", "show", tmp_path / "cache", "texts")
    assert shown.status == 0, shown.err
    verified = command("cache", "verify", tmp_path / "cache")
    assert verified.status == 0, verified.out


def test_several_targets_become_label_sets_over_the_same_samples(command, made, tmp_path):
    config = made(target=None, targets=TARGETS)
    ended = command("label", config, "--json")
    assert ended.status == 0, ended.err
    reports = ended.json["targets"]
    assert {name: report["name"] for name, report in reports.items()} == {"labels": "texts.labels", "hidden": "texts.hidden"}
    assert reports["labels"]["num_rows"] == reports["hidden"]["num_rows"] == 80
    assert reports["hidden"]["relative_error"] < 0.02
    assert command("cache", "verify", tmp_path / "cache").status == 0
    fewer = made(file="fewer", name="fewer", target={"kind": "hidden_states", "layers": [2]})
    assert "from wider or finer labels of them" in command("plan", fewer).out
    assert command("label", fewer, "--json").json["num_computed_rows"] == 0


def test_the_head_of_hidden_states_lies_in_the_cache_and_comes_back_when_it_is_lost(command, made, tmp_path):
    config = made(target={"kind": "hidden_states", "layers": [2], "head": True})
    assert command("label", config).status == 0
    (head,) = (tmp_path / "cache" / "heads").iterdir()
    data = head.read_bytes()
    assert command("cache", "verify", tmp_path / "cache").status == 0
    head.unlink()
    assert command("cache", "verify", tmp_path / "cache").status == 1
    assert command("label", config, "--json").json["num_computed_rows"] == 0
    assert head.read_bytes() == data
    for damage in (head.unlink, lambda: head.write_bytes(data[:-1])):
        damage()
        assert "run decant repair CONFIG" in command("cache", "verify", tmp_path / "cache").out
        assert command("repair", config).status == 0
        assert head.read_bytes() == data


def test_bad_documents_are_listed_and_limited(command, made, tmp_path):
    corpus = tmp_path / "bad.txt"
    corpus.write_bytes(b"kaba lodi\n\n\xff\nmi nu\n")
    config = made(source={"kind": "text", "path": str(corpus), "unit_size": 10})
    refused = command("label", config)
    assert refused.status == 1
    assert "4 of 8 rows have no label, more than generation.dead_letter_limit 0.01 allows" in refused.err
    assert "the document is empty" in refused.err
    assert "not UTF-8" in refused.err
    data = json.loads(Path(config).read_text())
    data["generation"]["dead_letter_limit"] = 0.5
    report = command("label", write_config(tmp_path / "allowed.json", data), "--json").json
    assert (report["num_rows"], report["num_dead_letters"], report["num_computed_rows"]) == (4, 2, 0)
    shown = command("cache", "show", tmp_path / "cache", "texts", "--dead-letters")
    assert shown.out.count("dead letter ") == 2
    again = command("label", write_config(tmp_path / "again.json", data), "--retry-dead-letters", "--json").json
    assert (again["num_retried_rows"], again["num_computed_rows"]) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"views": {**MASKS, "length": 65}}, "views.length: 65 tokens are more than the teacher takes; give at most 64"),
        ({"target": {"k": 18}}, "target.k: 18 is larger than the teacher's 17 tokens of vocabulary"),
        ({"target": {"kind": "hidden_states", "layers": [1, 3]}}, "no layer 3 of hidden_states; it has 0 to 2"),
        ({"target": {"kind": "attention", "layers": [3]}}, "no layer 3 of attention; it has 1 to 2"),
        ({"target": {"kind": "hidden_states", "layers": [1], "head": True}}, "a head reads layer 2, and layers end with 1"),
        (
            {"target": {"kind": "hidden_states", "layers": [2], "tokens": "first", "head": True}},
            "reads every token, and tokens: first leaves most of them out",
        ),
        ({"target": {"kind": "relations", "layer": 1, "num_relation_heads": 5}}, "5 heads do not divide the 32 numbers"),
    ],
)
def test_what_the_teacher_cannot_give_is_refused_before_anything_runs(command, made, changes, words):
    refused = command("plan", made(**changes))
    assert refused.status in (1, 2)
    assert words in refused.err


def test_two_workers_write_the_bytes_of_one(command, made, tmp_path):
    for workers in (1, 2):
        data = json.loads(Path(made()).read_text())
        cache = tmp_path / f"cache{workers}"
        config = write_config(tmp_path / f"{workers}.json", {**data, "cache": str(cache)})
        assert command("label", config, "--workers", workers, "--json").status == 0
    assert tars(tmp_path / "cache1") == tars(tmp_path / "cache2")


def test_a_killed_run_goes_on_to_the_same_bytes(command, made, tmp_path):
    whole = write_config(tmp_path / "whole.json", {**json.loads(Path(made()).read_text()), "cache": str(tmp_path / "whole")})
    assert command("label", whole).status == 0
    config = made()
    process = start_decant("label", config)
    records = tmp_path / "cache" / "requests"
    deadline = time.monotonic() + 120
    while not list(records.glob("*/*.v*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    left = 80 - 20 * len(list(records.glob("*/*.v*.json")))
    report = command("label", config, "--json").json
    assert report["num_computed_rows"] == left
    assert tars(tmp_path / "cache") == tars(tmp_path / "whole")


def test_dead_letters_of_the_teacher_are_tried_again(command, tmp_path):
    factory = f"{touchy_teacher.__module__}:{touchy_teacher.__name__}"
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("kaba lodi\nmi nu\nra so\n")
    tokenizer = save_model(tmp_path / "bert", "bert")
    data = {
        "name": "texts",
        "cache": str(tmp_path / "cache"),
        "source": {"kind": "text", "path": str(corpus)},
        "teacher": {
            "kind": "text_factory",
            "name": factory,
            "tokenizer": str(tokenizer),
            "device": "cpu",
            "kwargs": {"mood": str(tmp_path / "mood")},
        },
        "views": {"kind": "tokens", "length": 16},
        "target": {"k": 5},
        "generation": {"batch_size": 4, "dead_letter_limit": 0.5},
    }
    config = write_config(tmp_path / "config.json", data)
    first = command("label", config, "--json").json
    assert (first["num_rows"], first["num_dead_letters"]) == (2, 1)
    unchanged = command("label", config, "--retry-dead-letters", "--json").json
    assert (unchanged["num_retried_rows"], unchanged["num_cured_rows"], unchanged["num_dead_letters"]) == (1, 0, 1)
    (tmp_path / "mood").write_text("good")
    cured = command("label", config, "--retry-dead-letters", "--json").json
    assert (cured["num_retried_rows"], cured["num_cured_rows"], cured["num_rows"], cured["num_dead_letters"]) == (1, 1, 3, 0)
    assert command("cache", "verify", tmp_path / "cache").status == 0


def test_damage_is_found_and_repaired_to_the_same_bytes(command, made, tmp_path):
    config = made(target=None, targets=TARGETS)
    command("label", config)
    before = tars(tmp_path / "cache")
    for tar in sorted((tmp_path / "cache").rglob("*.tar"))[::3]:
        data = bytearray(tar.read_bytes())
        data[len(data) // 2] ^= 255
        tar.write_bytes(data)
    found = command("cache", "verify", tmp_path / "cache")
    assert found.status == 1
    repaired = command("repair", config, "--json")
    assert repaired.status == 0, repaired.err + repaired.out
    assert sum(one["num_equal_parts"] for one in repaired.json["targets"].values()) == 3
    assert {name: data for name, data in tars(tmp_path / "cache").items() if name in before} == before
    assert command("cache", "verify", tmp_path / "cache").status == 0


@pytest.mark.parametrize("target", [{"k": 5}, {"codec": {"kind": "sampled"}}, *list(TARGETS.values())[1:]])
def test_an_audit_finds_labels_right_and_those_of_another_teacher_wrong(command, made, tmp_path, target):
    config = made(target=target)
    assert command("label", config).status == 0
    right = command("audit", config, "--rows", 20, "--json")
    assert right.status == 0, right.out + right.err
    assert right.json["num_rows"] == 20
    strict = command("audit", config, "--threshold", 0, "--rows", 80, "--json")
    # Other batches than when they were labelled: the last bit may differ, or nothing at all.
    assert strict.json["distance_max"] < right.json["threshold"]
    other = made(file="other", target=target, teacher={"kind": "masked_lm", "name": str(tmp_path / "other"), "device": "cpu"})
    save_model(tmp_path / "other", "bert", seed=5)
    refused = command("audit", other)
    assert refused.status == 1
    assert "teacher.weights_sha256: the labels are of" in refused.err
