"""What the commands say and hand on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from storage.catalogue import list_cache, show_label_set, verify_label_sets
from storage.errors import ConfigError, MismatchError
from storage.interchange import commands, export_label_set, import_tinyvit_folder
from storage.interchange.commands import parse_size
from storage.interchange.export import export_labels
from storage.interchange.rows import parse_views
from tests.storage.interchange.label_sets import draw_records, make_label_set, make_request, write_epoch


def test_an_export_says_what_was_lost(tmp_path):
    make_label_set(tmp_path / "cache", units=[["a", "b"]], num_views=3, dead=frozenset({("a", 2)}))
    found = export_label_set(str(tmp_path / "cache"), name="tiny", target=str(tmp_path / "out"), layout="tinyvit", views="1-2")
    text = found.pop("text")
    assert text.startswith(f"{tmp_path / 'out'}: tinyvit, 3 rows of 2 views in 4 files, 54 bytes")
    for sentence in (
        "1 samples of these views have no label, and so no row: its reader stops with a KeyError at them",
        "every record says seed 0, so a student trained by TinyViT's code does not see the pixels",
        "the rest mass: TinyViT takes 1 - sum of float16 probabilities, here off by at most",
        "hard labels and class names: records hold none",
    ):
        assert sentence in text
    summary = json.loads((tmp_path / "out/export.json").read_bytes())
    assert summary["lost"] == list(found["lost"])
    assert (summary["num_rows"], summary["num_missing"], summary["views"]) == (3, 1, [1, 2])
    assert json.loads(json.dumps(found))["losses"]["num_rows_above_one"] == found["losses"]["num_rows_above_one"]


def test_an_export_holds_what_it_reads_against_gc(tmp_path, monkeypatch):
    label_set = make_label_set(tmp_path / "cache", units=[["a", "b"]])
    held = []

    def look(*arguments, **options):
        store = label_set.cache.store
        held.extend(json.loads(store.read(name))["requests"] for name in store.names("runs/holds"))
        return export_labels(*arguments, **options)

    monkeypatch.setattr(commands, "export_labels", look)
    export_label_set(str(tmp_path / "cache"), name="tiny", target=str(tmp_path / "out"), layout="tinyvit")
    assert held == [[label_set.manifest.request.fingerprint()]]
    assert label_set.cache.store.names("runs/holds") == []


def test_what_tinyvit_cannot_hold_is_refused(tmp_path):
    make_label_set(tmp_path / "many", units=[["a"]], request=make_request(num_classes=40000))
    with pytest.raises(MismatchError, match="for at most 32,768 classes; these labels have 40,000"):
        export_label_set(str(tmp_path / "many"), name="tiny", target=str(tmp_path / "out"), layout="tinyvit")
    for key in (" a", "a\n", "a\rb", "a\nb", "a\u2003"):
        make_label_set(tmp_path / "keys", units=[["z", key]])
        with pytest.raises(MismatchError, match="cannot stand in TinyViT's key files"):
            export_label_set(str(tmp_path / "keys"), name="tiny", target=str(tmp_path / "out"), layout="tinyvit")
    assert not (tmp_path / "out").exists()


def test_an_import_is_listed_shown_and_verified(tmp_path):
    rng = np.random.default_rng(0)
    for epoch in (4, 5, 9):
        ids, probs = draw_records(rng, num=2, num_classes=30, k=3)
        write_epoch(tmp_path / "logits", epoch=epoch, packages=[("ab", ids, probs)], k=3)
    cache = str(tmp_path / "cache")
    found = import_tinyvit_folder(
        str(tmp_path / "logits"), cache, name="clip-22k", teacher="clip", num_classes=30, image_size="224x192", epochs="4-5"
    )
    assert "4 rows of 2 samples, 2 views" in found.pop("text")
    assert (found["num_rows"], found["num_dead_letters"], found["num_clipped"]) == (4, 0, 0)
    json.dumps(found)
    (entry,) = list_cache(cache)["label_sets"]
    assert (entry["id"], entry["teacher"], entry["view"]) == (found["label_set"], "clip", "imported")
    shown = show_label_set(cache, name="clip-22k", with_dead_letters=True)
    assert "clip, as whoever imported its labels called it" in shown["text"]
    assert "2 x imported 224x192, tinyvit files of epoch 4 to 5: cannot be rendered here" in shown["text"]
    json.dumps(shown)
    assert verify_label_sets(cache, progress=False)["problems"] == []
    again = export_label_set(cache, name="clip-22k", target=str(tmp_path / "out"), layout="tinyvit")
    assert "augmentation seeds: the cache keeps only their digest, so every record says seed 0" in again["text"]


@pytest.mark.parametrize(("text", "views"), [("3", [3]), ("0-2", [0, 1, 2]), ("7, 1-2", [7, 1, 2])])
def test_views_are_numbers_and_ranges(text, views):
    assert list(parse_views(text)) == views


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "1-2-3"])
def test_other_views_are_refused(text):
    with pytest.raises(MismatchError, match="are not understood; give numbers and ranges, as in 0-3,7"):
        parse_views(text)


@pytest.mark.parametrize("change", [{"unit_size": 0}, {"dead_letter_limit": float("nan")}, {"dead_letter_limit": 1.5}])
def test_numbers_that_cannot_be_meant_are_refused(tmp_path, change):
    with pytest.raises(ConfigError, match="give at least 1 sample, and a limit in"):
        import_tinyvit_folder(
            str(tmp_path), str(tmp_path / "cache"), name="a", teacher="b", num_classes=3, image_size="224", **change
        )
    assert not (tmp_path / "cache").exists()


def test_sizes():
    assert parse_size("224") == (224, 224)
    assert parse_size("224x192") == (224, 192)
    for text in ("", "x", "224x", "0", "2.5", "224x192x3", "99999", "10x99999"):
        with pytest.raises(ConfigError, match="is not understood; give pixels such as 224, or height x width"):
            parse_size(text)
