"""Out as TinyViT's files and in again: the same classes and, to the precision of float16, the same probabilities."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.cache import Cache
from storage.interchange import export_labels, import_tinyvit
from storage.interchange.rows import RowReader
from storage.interchange.tinyvit import fill
from storage.sources.base import NO_LABEL
from storage.specs import CompactCodec, ExactCodec
from storage.verify import verify
from tests.storage.interchange.label_sets import (
    make_label_set,
    make_request,
    read_as_tinyvit,
    rows_of,
    target_of_tinyvit,
)
from tests.storage.rows import SHAPES

KEYS = st.one_of(
    st.from_regex(r"n[0-9]{8}/n[0-9]{8}_[0-9]{1,5}\.JPEG", fullmatch=True),
    st.text(
        alphabet=st.one_of(st.sampled_from("/ .%_-~:\\'\"é猫\U0001f408\t\u2028"), st.characters(exclude_categories=["Cs", "Cc"])),
        min_size=1,
        max_size=12,
    ).filter(lambda key: key == key.strip() and key),
)


def tolerance(probs):
    """Half a step of float16 as a probability, half a step as its log, twice over: the cache it came from rounded, too."""
    with np.errstate(divide="ignore"):
        logs = np.abs(np.log(np.maximum(probs, 1e-30)))
    return probs * (2.0**-11 + 2 * np.maximum(logs, 2.0**-14) * 2.0**-11 + 2.0**-10) + 2.0**-24


@st.composite
def label_sets(draw):
    keys = draw(st.lists(KEYS, min_size=1, max_size=13, unique=True))
    num_units = draw(st.integers(1, min(3, len(keys))))
    num_classes = draw(st.sampled_from([2, 5, 300, 32768]))
    num_views = draw(st.integers(1, 5))
    pairs = [(key, view) for key in keys for view in range(num_views)]
    return {
        "units": [keys[number::num_units] for number in range(num_units)],
        "num_views": num_views,
        "dead": frozenset(draw(st.lists(st.sampled_from(pairs), max_size=len(pairs) - 1, unique=True))),
        "shape": draw(st.sampled_from(SHAPES)),
        "seed": draw(st.integers(0, 2**16)),
        "request": make_request(
            num_classes=num_classes,
            k=draw(st.integers(1, min(num_classes, 12))),
            codec=draw(st.sampled_from([ExactCodec(), CompactCodec(), CompactCodec(levels=20)])),
        ),
    }


@given(options=label_sets())
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_export_and_import_keep_ids_and_probabilities(options):
    with tempfile.TemporaryDirectory() as folder:
        label_set = make_label_set(f"{folder}/cache", **options)
        before = rows_of(label_set)
        report = export_labels(label_set, url=f"{folder}/out", layout="tinyvit")
        assert report.num_rows == len(before)
        views = sorted({view for _, view in before})
        target = options["request"].target
        again, imported = import_tinyvit(
            f"{folder}/out",
            Cache.at(f"{folder}/cache2"),
            name="again",
            teacher="tiny",
            num_classes=target.num_classes,
            image_size=(8, 8),
            epochs=views,
            unit_size=3,
            dead_letter_limit=1.0,
        )
        after = rows_of(again)
        assert verify(again).problems == ()
        assert imported.num_rows == len(after) == len(before)
        for (key, view), (ids, probs, rest, _) in before.items():
            ids_after, probs_after, rest_after, label = after[key, views.index(view)]
            assert label == NO_LABEL
            found = dict(zip(ids_after.tolist(), probs_after.tolist(), strict=True))
            for class_id, prob in zip(ids.tolist(), probs.tolist(), strict=True):
                assert abs(found.pop(class_id, 0.0) - prob) <= tolerance(np.float64(prob)), (class_id, prob)
            # What was added to fill a record is the even share of the rest; the mass is where it was.
            share = rest / max(target.num_classes - len(ids), 1)
            assert all(abs(prob - share) <= tolerance(np.float64(share)) for prob in found.values())
            assert abs(rest_after + sum(found.values()) - rest) <= 2e-3


def test_a_view_without_any_row_is_no_epoch_that_can_be_imported_alone(tmp_path):
    label_set = make_label_set(tmp_path / "cache", units=[["a", "b"]], dead=frozenset({("a", 1), ("b", 1)}))
    export_labels(label_set, url=str(tmp_path / "out"), layout="tinyvit")
    assert (tmp_path / "out/logits_top3_epoch1/rank0-values.bin").read_bytes() == b""
    again, report = import_tinyvit(
        str(tmp_path / "out"),
        Cache.at(str(tmp_path / "cache2")),
        name="again",
        teacher="tiny",
        num_classes=10,
        image_size=(8, 8),
        epochs=[0],
    )
    assert report.num_dead_letters == 0
    assert rows_of(again).keys() == {("a", 0), ("b", 0)}


@pytest.mark.parametrize("codec", [ExactCodec(), CompactCodec(levels=12)])
def test_a_student_of_tinyvit_gets_the_distribution_that_decant_densifies(tmp_path, codec):
    request = make_request(num_classes=50, k=8, codec=codec)
    label_set = make_label_set(tmp_path / "cache", units=[["a", "b", "c d"], ["e/f"]], request=request)
    report = export_labels(label_set, url=str(tmp_path / "out"), layout="tinyvit")
    before = rows_of(label_set)
    for view in range(2):
        read = read_as_tinyvit(tmp_path / "out", k=8, epoch=view)
        assert list(read) == ["a", "b", "c d", "e/f"]
        for key, (seed, ids, probs) in read.items():
            kept_ids, kept_probs, rest, _ = before[key, view]
            dense = np.full(50, rest / (50 - len(kept_ids)))
            dense[kept_ids] = kept_probs
            assert seed == 0
            assert len(set(ids.tolist())) == 8
            assert (np.diff(probs) <= 0).all()
            np.testing.assert_allclose(target_of_tinyvit(ids, probs, num_classes=50), dense, atol=3e-4)
    assert (report.losses.num_filled_entries > 0) == isinstance(codec, CompactCodec)
    assert any("entries were added with their even share" in sentence for sentence in report.lost) == isinstance(
        codec, CompactCodec
    )


def test_filling_names_each_class_once_and_keeps_what_is_there(tmp_path):
    request = make_request(num_classes=9, k=9, codec=CompactCodec(levels=4))
    label_set = make_label_set(tmp_path, units=[[f"{number}" for number in range(40)]], request=request, num_views=1)
    for rows in RowReader.of(label_set, views=None).read(0):
        ids, probs, num_filled = fill(rows.soft_labels, k=9)
        assert num_filled == (rows.soft_labels.probs == 0).sum() + (9 - rows.soft_labels.probs.shape[1]) * len(ids)
        assert (np.sort(ids, axis=1) == np.arange(9)).all()
        dense = np.zeros((len(ids), 9))
        np.put_along_axis(dense, ids, probs, axis=1)
        np.testing.assert_allclose(dense, rows.soft_labels.densify(), rtol=1e-6)
