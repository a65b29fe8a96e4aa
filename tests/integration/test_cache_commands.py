"""The actions of `decant cache` and what repairs a cache, from the command line."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from storage.cache import Cache
from storage.label_set import LabelSet


@pytest.fixture
def labelled(command, made, tmp_path):
    report = command("label", made(), "--json").json
    return tmp_path / "cache", report["label_set"]


def test_a_tag_stays_where_it_was_put(command, made, labelled):
    cache, first = labelled
    assert command("cache", "tag", cache, "tiny", "paper").status == 0
    second = command("label", made("more", views=3), "--json").json["label_set"]
    listed = {
        entry["id"]: (entry["names"], entry["tags"]) for entry in command("cache", "ls", cache, "--json").json["label_sets"]
    }
    assert listed == {first: ([], ["paper"]), second: (["tiny"], [])}
    refused = command("label", made("taken", views=4), "--set", "name=paper")
    assert refused.status == 1
    assert "'paper' is a tag" in refused.err
    assert command("cache", "tag", cache, "paper", "paper", "--delete").status == 0
    assert command("cache", "show", cache, "paper").status == 1


def test_a_difference_is_said_in_words_and_figures(command, made, labelled):
    cache, first = labelled
    other = command("label", made("other", target={"k": 3}), "--json").json
    found = command("cache", "diff", cache, first, other["label_set"])
    assert found.status == 0
    assert "target.k" in found.out
    figures = command("cache", "diff", cache, first, other["label_set"], "--json").json
    assert figures["same"] is False
    assert [field["field"] for field in figures["fields"]] == ["target.k"]


def test_garbage_is_listed_first_and_removed_when_asked(command, labelled):
    cache, _ = labelled
    stray = next((cache / "requests").rglob("*.tar"))
    lost = stray.with_name("0" * 32 + ".v00000-00002." + "0" * 16 + ".tar")
    lost.write_bytes(stray.read_bytes())
    listed = command("cache", "gc", cache, "--grace-hours", "0", "--json").json
    assert not listed["deleted"]
    assert listed["num_files"] >= 1
    assert lost.exists()
    assert command("cache", "gc", cache, "--grace-hours", "0", "--delete").status == 0
    assert not lost.exists()
    assert command("cache", "verify", cache).status == 0


def test_labels_leave_and_come_back(command, labelled, tmp_path):
    cache, _ = labelled
    assert command("cache", "export", cache, "tiny", "--to", tmp_path / "out", "--layout", "parquet").status == 0
    (file,) = (tmp_path / "out").rglob("*.parquet")
    assert pq.read_table(file).num_rows in (24, 48)
    assert command("cache", "export", cache, "tiny", "--to", tmp_path / "logits", "--layout", "tinyvit").status == 0
    words = ("--name", "back", "--teacher", "tiny", "--num-classes", 3, "--image-size", 16)
    imported = command("cache", "import-tinyvit", tmp_path / "logits", tmp_path / "again", *words, "--json")
    assert imported.status == 0
    assert imported.json["num_rows"] == 48
    back = LabelSet.open(Cache.at(str(tmp_path / "again")), name_or_id="back")
    assert (back.manifest.num_rows, back.manifest.num_views) == (48, 2)


def test_what_is_damaged_is_found_and_repaired_and_an_audit_agrees(command, made, labelled):
    cache, first = labelled
    config = made()
    assert command("audit", config, "--rows", 12).status == 0
    tar = next((cache / "requests").rglob("*.tar"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    assert command("cache", "verify", cache, "tiny").status == 1
    looked = command("repair", config, "--dry-run")
    assert looked.status == 1
    assert tar.name in looked.out
    repaired = command("repair", config)
    assert repaired.status == 0
    assert command("cache", "verify", cache, "tiny").status == 0
    assert tar.read_bytes() == whole
    assert json.loads((cache / "names" / "tiny.json").read_text().splitlines()[0])["label_set"] == first
