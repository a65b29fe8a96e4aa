"""Import of TinyViT's logits folder: what is whole comes in, what is not is refused or named, sample by sample."""

from __future__ import annotations

import json
import uuid

import fsspec
import numpy as np
import pytest

from storage.cache import Cache
from storage.config import ImageFolderConfig
from storage.errors import ConfigError, CorruptError, DeadLetterLimitError, MismatchError
from storage.interchange import import_tinyvit, tinyvit_import
from storage.label_set import LabelSet
from storage.parts import PartRecord
from storage.sources import open_source
from storage.specs import EvaluationView, Normalization, RequestSpec, SoftLabelsSpec, TeacherSpec
from storage.streams.label_stream import LabelStream
from storage.verify import verify
from tests.storage.interchange.label_sets import draw_records, rows_of, write_epoch

NUM_CLASSES, K = 20, 4


@pytest.fixture
def cache(tmp_path):
    return Cache.at(str(tmp_path / "cache"))


def run(folder, cache, **options):
    settings = {"name": "in", "teacher": "clip", "num_classes": NUM_CLASSES, "image_size": (8, 8), "dead_letter_limit": 0.0}
    return import_tinyvit(str(folder), cache, **{**settings, **options})


def write(folder, *, epochs=(0,), keys=("b", "a", "c"), seed=0, ranks=1):
    """Epochs of records in shuffled order, dealt to ranks; returns ids and probabilities by (key, epoch)."""
    rng, truth = np.random.default_rng(seed), {}
    for epoch in epochs:
        shuffled = [keys[i] for i in rng.permutation(len(keys))]
        ids, probs = draw_records(rng, num=len(keys), num_classes=NUM_CLASSES, k=K)
        write_epoch(
            folder, epoch=epoch, packages=[(shuffled[r::ranks], ids[r::ranks], probs[r::ranks]) for r in range(ranks)], k=K
        )
        truth |= {(key, epoch): (ids[row], probs[row]) for row, key in enumerate(shuffled)}
    return truth


def dead_letters(label_set):
    """(key, view, reason) of every dead letter."""
    found = []
    for index in range(label_set.parts.num_rows):
        name = f"{label_set.tar_path(index).rsplit('.', 2)[0]}.json"
        record = PartRecord.from_bytes(label_set.cache.store.read(name), origin=name)
        assert all(letter.stage == "import" for letter in record.dead_letters)
        found += [(letter.key, letter.view, letter.reason) for letter in record.dead_letters]
    return found


def assert_equal_rows(label_set, truth, *, epochs):
    found = rows_of(label_set)
    assert found.keys() == {(key, epochs.index(epoch)) for key, epoch in truth}
    for (key, epoch), (ids, probs) in truth.items():
        ids_found, probs_found, rest, _ = found[key, epochs.index(epoch)]
        order = np.argsort(-probs.astype(np.float64), kind="stable")
        np.testing.assert_array_equal(np.sort(ids_found), np.sort(ids))
        np.testing.assert_allclose(probs_found, probs[order].astype(np.float64), rtol=6e-3)
        assert rest == pytest.approx(max(0.0, 1 - probs.astype(np.float64).sum()), abs=3e-3)


def test_each_epoch_is_a_view_and_keys_come_sorted(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(tinyvit_import, "_EPOCHS_PER_PART", 2)
    keys = [f"n{number:03d}" for number in range(11)]
    truth = write(tmp_path / "logits", epochs=(3, 10, 7), keys=keys, ranks=3)
    label_set, report = run(tmp_path / "logits", cache, unit_size=4)
    assert_equal_rows(label_set, truth, epochs=[3, 7, 10])
    assert verify(label_set).problems == ()
    assert label_set.parts.column("unit_name").to_pylist() == [
        name for name in ("00000-00004", "00004-00008", "00008-00011") for _ in range(2)
    ]
    assert [key for key, view in rows_of(label_set) if view == 0] == keys
    manifest = label_set.manifest
    assert (manifest.num_views, manifest.num_samples, manifest.num_units) == (3, 11, 3)
    assert manifest.request.view.epochs == (3, 7, 10)
    assert (manifest.request.teacher.kind, manifest.request.teacher.architecture) == ("imported", "clip")
    assert (report.num_parts, report.num_rows, report.num_dead_letters, report.num_unused) == (6, 33, 0, 0)
    assert LabelSet.open(cache, name_or_id="in").manifest == manifest


def test_class_means_are_those_of_the_rows(tmp_path, cache):
    truth = write(tmp_path / "logits", epochs=(0, 1))
    label_set, _ = run(tmp_path / "logits", cache)
    mean = np.zeros(NUM_CLASSES)
    for ids, probs in truth.values():
        dense = np.full(NUM_CLASSES, (1 - probs.astype(np.float64).sum()) / (NUM_CLASSES - K))
        dense[ids] = probs
        mean += dense / len(truth)
    np.testing.assert_allclose(label_set.class_means(), mean, atol=2e-3)


def test_other_records_are_another_label_set_and_equal_ones_the_same(tmp_path, cache):
    write(tmp_path / "one")
    write(tmp_path / "same")
    path = tmp_path / "one/logits_top4_epoch0/rank0-values.bin"
    write(tmp_path / "other")
    other = tmp_path / "other/logits_top4_epoch0/rank0-values.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1  # a seed: the labels are equal, the views are not
    other.write_bytes(bytes(data))
    one, _ = run(tmp_path / "one", cache)
    same, report = run(tmp_path / "same", cache)
    different, _ = run(tmp_path / "other", cache)
    assert same.manifest.id == one.manifest.id
    assert (report.num_reused_parts, report.num_parts) == (1, 1)
    assert different.manifest.id != one.manifest.id


def test_an_import_goes_on_where_another_was_interrupted(tmp_path, cache, monkeypatch):
    write(tmp_path / "logits", epochs=(0, 1), keys=[f"{number}" for number in range(10)])
    commit, made = Cache.commit_part, []

    def failing(self, data, *, record):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(record.part.name)
        return commit(self, data, record=record)

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "commit_part", failing)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "logits", cache, unit_size=3)
    assert list(cache.label_set_ids()) == []
    label_set, report = run(tmp_path / "logits", cache, unit_size=3)
    assert (report.num_reused_parts, report.num_parts, report.num_rows) == (2, 4, 20)
    fresh, _ = run(tmp_path / "logits", Cache.at(str(tmp_path / "cache2")), unit_size=3)
    assert fresh.manifest == label_set.manifest


def test_a_folder_in_an_object_store(tmp_path, cache):
    truth = write(tmp_path / "logits", ranks=2)
    url = f"memory://{uuid.uuid4().hex}/logits"
    fsspec.filesystem("memory").put(str(tmp_path / "logits"), url, recursive=True)
    label_set, _ = run(url, cache)
    assert_equal_rows(label_set, truth, epochs=[0])


def test_padding_repeats_a_sample_and_its_first_record_counts(tmp_path, cache):
    rng = np.random.default_rng(0)
    ids, probs = draw_records(rng, num=4, num_classes=NUM_CLASSES, k=K)
    packages = [(["a", "b"], ids[:2], probs[:2]), (["c", "a"], ids[2:], probs[2:])]
    write_epoch(tmp_path / "logits", epoch=0, packages=packages, k=K)
    label_set, report = run(tmp_path / "logits", cache)
    assert report.num_doubled == 1
    truth = {(key, 0): (ids[row], probs[row]) for row, key in enumerate("abc")}
    assert_equal_rows(label_set, truth, epochs=[0])


FAULTS = {
    "nan": (lambda ids, probs: (ids, [np.nan, *probs[1:]]), "epoch 0: a probability is NaN or infinite"),
    "infinite": (lambda ids, probs: (ids, [np.inf, *probs[1:]]), "epoch 0: a probability is NaN or infinite"),
    "negative": (lambda ids, probs: (ids, [0.5, 0.2, 0.1, -0.1]), "epoch 0: a probability is negative"),
    "above one": (lambda ids, probs: (ids, [0.9, 0.5, 0.1, 0.0]), "epoch 0: probabilities sum to more than 1 (1.49988)"),
    "rising": (lambda ids, probs: (ids, [0.1, 0.2, 0.3, 0.1]), "epoch 0: probabilities rise along the record"),
    "beyond": (lambda ids, probs: ([NUM_CLASSES, 1, 2, 3], probs), "epoch 0: a class id is outside the 20 classes"),
    "wrapped": (lambda ids, probs: ([-1, 1, 2, 3], probs), "epoch 0: a class id is outside the 20 classes"),
    "twice": (lambda ids, probs: ([1, 1, 2, 3], probs), "epoch 0: a class is named twice"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_record_that_is_no_distribution_is_a_dead_letter(tmp_path, cache, fault):
    damage, reason = FAULTS[fault]
    rng = np.random.default_rng(0)
    ids, probs = (list(values) for values in draw_records(rng, num=5, num_classes=NUM_CLASSES, k=K))
    ids[3], probs[3] = damage(ids[3], probs[3])
    write_epoch(tmp_path / "logits", epoch=0, packages=[("abcde", ids, probs)], k=K)
    with pytest.raises(
        DeadLetterLimitError, match=r"1 or more of 5 labels .* are missing or are no distribution, such as: epoch 0"
    ):
        run(tmp_path / "logits", cache)
    assert list(cache.label_set_ids()) == []
    label_set, report = run(tmp_path / "logits", cache, dead_letter_limit=0.2)
    assert dead_letters(label_set) == [("d", 0, reason)]
    assert (report.num_dead_letters, report.num_rows) == (1, 4)
    assert [key for key, _ in rows_of(label_set)] == ["a", "b", "c", "e"]


def test_sums_that_rounding_lifts_above_one_are_clipped_and_counted(tmp_path, cache):
    # Each of these rounds up: 1/3 becomes 0.33325, 0.66699 is above 2/3.
    probs = np.array([[0.66699, 0.33325, 0.0, 0.0], [0.5, 0.25, 0.125, 0.0625]], dtype=np.float16)
    assert 1 < probs[0].astype(np.float64).sum() < 1 + 2**-11
    write_epoch(tmp_path / "logits", epoch=0, packages=[("ab", np.tile(np.arange(4), (2, 1)), probs)], k=K)
    label_set, report = run(tmp_path / "logits", cache)
    assert report.num_clipped == 1
    found = rows_of(label_set)
    assert found["a", 0][2] == 0.0
    assert found["a", 0][0].tolist() == [0, 1]
    assert found["b", 0][2] == pytest.approx(0.0625, rel=2e-3)


def test_where_all_classes_are_named_there_is_no_rest(tmp_path, cache):
    probs = np.array([[0.7, 0.2, 0.0999], [0.5, 0.2, 0.1]], dtype=np.float16)
    write_epoch(tmp_path / "logits", epoch=0, packages=[("ab", np.tile(np.arange(3), (2, 1)), probs)], k=3)
    label_set, _ = run(tmp_path / "logits", cache, num_classes=3, dead_letter_limit=0.5)
    assert rows_of(label_set)["a", 0][2] == 0.0
    assert rows_of(label_set)["a", 0][1].sum() == pytest.approx(1, abs=1e-6)
    ((key, _, reason),) = dead_letters(label_set)
    assert key == "b"
    assert reason.startswith("epoch 0: probabilities of all classes sum to less than 1 (0.7999")


def test_a_sample_that_an_epoch_lacks_is_a_dead_letter_of_that_view(tmp_path, cache):
    write(tmp_path / "logits", epochs=(0, 1))
    write(tmp_path / "less", epochs=(2,), keys=("a", "c"))
    (tmp_path / "less/logits_top4_epoch2").rename(tmp_path / "logits/logits_top4_epoch2")
    with pytest.raises(DeadLetterLimitError, match="1 or more of 9 labels"):
        run(tmp_path / "logits", cache, dead_letter_limit=0.1)
    label_set, _ = run(tmp_path / "logits", cache, dead_letter_limit=0.12)
    assert dead_letters(label_set) == [("b", 2, "epoch 2 has no record of it")]
    assert len(rows_of(label_set)) == 8


def lose_line(folder):
    path = folder / "rank0-keys.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def cut(folder, *, name, num_bytes):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-num_bytes])


def write_keys(folder, text):
    (folder / "rank0-keys.txt").write_bytes(text)


DAMAGES = {
    "a lost line of keys": (
        lose_line,
        r"rank0-keys.txt has 2 keys, .*rank0-values.bin 3 records of K = 4: labels would go to other",
    ),
    "a cut line of keys": (lambda f: cut(f, name="rank0-keys.txt", num_bytes=1), "its last line does not end, so it was cut off"),
    "a cut record": (
        lambda f: cut(f, name="rank0-values.bin", num_bytes=7),
        "has 53 bytes, no whole number of records of 20 bytes",
    ),
    "a lost record": (lambda f: cut(f, name="rank0-values.bin", num_bytes=20), "has 3 keys, .* 2 records of K = 4"),
    "lost keys": (lambda f: (f / "rank0-keys.txt").unlink(), "rank0-keys.txt is missing, so the epoch is not whole"),
    "lost values": (lambda f: (f / "rank0-values.bin").unlink(), "rank0-values.bin is missing, so the epoch is not whole"),
    "a key twice": (lambda f: write_keys(f, b"a\nb\na \n"), "a key stands there twice, which TinyViT never writes"),
    "an empty key": (lambda f: write_keys(f, b"a\n\nb\n"), "a key is empty"),
    "no UTF-8": (lambda f: write_keys(f, b"a\n\xff\xfe\nb\n"), "not UTF-8"),
    "a carriage return": (lambda f: write_keys(f, b"a\nb\rc\nd\n"), "holds a carriage return"),
    "another K": (lambda f: f.rename(f.parent / "logits_top5_epoch0"), "no whole number of records of 24 bytes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_refused(tmp_path, cache, damage):
    write(tmp_path / "logits")
    harm, message = DAMAGES[damage]
    harm(tmp_path / "logits/logits_top4_epoch0")
    with pytest.raises(CorruptError, match=message):
        run(tmp_path / "logits", cache)
    assert list(cache.label_set_ids()) == []


def test_a_rank_that_was_not_fetched(tmp_path, cache):
    write(tmp_path / "logits", ranks=3)
    for path in (tmp_path / "logits/logits_top4_epoch0").glob("rank1-*"):
        path.unlink()
    with pytest.raises(CorruptError, match="rank1-keys.txt is missing, so the epoch is not whole: rank2 is there"):
        run(tmp_path / "logits", cache)


@pytest.mark.parametrize("k", [2**16 + 1, 10**30])
def test_a_folder_of_more_classes_than_ids_is_refused(tmp_path, cache, k):
    write(tmp_path / "logits")
    (tmp_path / "logits/logits_top4_epoch0").rename(tmp_path / f"logits/logits_top{k}_epoch0")
    with pytest.raises(MismatchError, match=f"holds labels of K = {k}, more classes than ids of 16 bits name"):
        run(tmp_path / "logits", cache)


def test_folders_of_two_k_are_refused(tmp_path, cache):
    write(tmp_path / "logits")
    ids, probs = draw_records(np.random.default_rng(0), num=1, num_classes=NUM_CLASSES, k=2)
    write_epoch(tmp_path / "logits", epoch=1, packages=[("a", ids, probs)], k=2)
    with pytest.raises(MismatchError, match="holds labels of K = 2, 4, which are two label sets"):
        run(tmp_path / "logits", cache)


def test_what_is_no_logits_folder_is_refused(tmp_path, cache):
    write(tmp_path / "logits")
    for folder in (tmp_path / "logits/logits_top4_epoch0", tmp_path / "nowhere"):
        with pytest.raises(MismatchError, match="is no logits folder of TinyViT"):
            run(folder, cache)
    with pytest.raises(MismatchError, match=r"has epochs 0; asked for were \[5\]"):
        run(tmp_path / "logits", cache, epochs=[0, 5])
    with pytest.raises(ConfigError, match="'../in' cannot be a label set's name"):
        run(tmp_path / "logits", cache, name="../in")
    for num_classes in (3, 65537):
        with pytest.raises(ConfigError, match="give the number of the teacher's classes, 4 to 65,536"):
            run(tmp_path / "logits", cache, num_classes=num_classes)


def test_ids_that_16_bits_make_negative_are_read_as_what_they_were(tmp_path, cache):
    ids, probs = np.array([[40000, 5, 32768, 21840]]), np.array([[0.5, 0.2, 0.1, 0.1]], dtype=np.float16)
    write_epoch(tmp_path / "logits", epoch=0, packages=[("a", ids, probs)], k=K)
    label_set, _ = run(tmp_path / "logits", cache, num_classes=50000)
    assert sorted(rows_of(label_set)["a", 0][0].tolist()) == [5, 21840, 32768, 40000]


def write_pictures(folder):
    for number, name in enumerate(("ant/a.1.jpg", "ant/b.jpg", "bee/c.jpg", "bee/d.jpg", "cat/e.jpg")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"%d" % number)
    return ImageFolderConfig(kind="image_folder", path=str(folder), unit_size=2)


NAMES = {
    "name": ["ant/a.1.jpg", "ant/b.jpg", "bee/c.jpg", "bee/d.jpg", "cat/e.jpg"],
    "stem": ["a.1", "b", "c", "d", "e"],
    "position": ["0", "1", "2", "3", "4"],
}


@pytest.mark.parametrize("style", NAMES)
def test_labels_join_the_pictures_of_a_source(tmp_path, cache, style):
    config = write_pictures(tmp_path / "pictures")
    truth = write(tmp_path / "logits", epochs=(0, 1), keys=NAMES[style])
    label_set, report = run(tmp_path / "logits", cache, source=config, keys=style)
    assert report.num_unused == 0
    stream = LabelStream(label_set, source=open_source(config))
    seen = 0
    for epoch in range(2):
        blocks = stream.block_rows(epoch=epoch)
        for block, num_rows in enumerate(blocks.tolist()):
            rows = stream.read(epoch=epoch, block_ids=np.full(num_rows, block), rows=np.arange(num_rows))
            for row, key in enumerate(rows.keys):
                number = NAMES["name"].index(key)
                assert rows.images[row] == b"%d" % number
                assert rows.labels[row] == ("ant", "bee", "cat").index(key.split("/")[0])
                ids, _ = truth[NAMES[style][number], epoch]
                assert sorted(rows.soft_labels.class_ids[row].tolist()) == sorted(ids.tolist())
                seen += 1
            assert not rows.view_digests.any()
    assert seen == 10
    assert label_set.manifest.classes == ("ant", "bee", "cat")
    assert label_set.manifest.statistics.num_labelled_rows == 10


def test_keys_that_are_not_the_sources_are_refused(tmp_path, cache):
    config = write_pictures(tmp_path / "pictures")
    write(tmp_path / "logits", keys=NAMES["stem"])
    with pytest.raises(
        MismatchError,
        match=r"names none of the source's 5 samples: its keys are such as '.*', the source's such as 'ant/a.1.jpg'",
    ):
        run(tmp_path / "logits", cache, source=config)
    (tmp_path / "pictures/cat/b.png").write_bytes(b"another b")
    with pytest.raises(MismatchError, match="1 file names occur in several folders of the source, such as 'b'"):
        run(tmp_path / "logits", cache, source=config, keys="stem")


def test_a_part_of_what_was_labelled_may_be_taken(tmp_path, cache):
    config = write_pictures(tmp_path / "pictures")
    write(tmp_path / "logits", keys=[*NAMES["name"], "zebra/z.jpg"])
    label_set, report = run(tmp_path / "logits", cache, source=config)
    assert (report.num_unused, report.num_rows) == (1, 5)
    assert ("zebra/z.jpg", 0) not in rows_of(label_set)


def test_specs_that_were_there_before_keep_their_fingerprints():
    request = RequestSpec(
        teacher=TeacherSpec(
            kind="timm",
            architecture="tiny",
            weights_sha256="5e" * 32,
            num_classes=10,
            normalization=Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            precision="fp32",
        ),
        view=EvaluationView(size=(8, 8), resize_size=(9, 9)),
        target=SoftLabelsSpec(num_classes=10, k=3, codec={"kind": "exact"}),
    )
    assert request.fingerprint() == "b4179606ec6c86eb6c7f8d0277378fe5bacbd9869ae50f347d0f066dfab9d692"
    assert RequestSpec.model_validate_json(json.dumps(request.to_json())) == request


def test_imported_requests_are_stored_and_their_views_are_not_rendered(tmp_path, cache):
    write(tmp_path / "logits")
    label_set, _ = run(tmp_path / "logits", cache)
    request = label_set.manifest.request
    assert cache.request(request.fingerprint()) == request
    with pytest.raises(MismatchError, match="labels of clip were imported .* cannot be rendered here"):
        request.rendered_view()
