"""One unit to one part: bytes that depend on nothing but the unit and the specs, and a bad sample that costs one row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.label_unit import UnitLabeller
from pipelines.plan import make_plan
from pipelines.request import resolve_request
from pipelines.teacher_memo import TeacherFacts
from pipelines.teachers import load_teacher
from storage.cache import Cache
from storage.errors import SourceError, TeacherError
from storage.images import decode_image
from storage.label_blocks import decode_label_block
from storage.parts import decode_class_means
from storage.samples import decode_samples
from storage.sources import index_source, open_source
from storage.views import draw_view_params, render
from tests.pipelines.networks import NAN_COLOUR, RAISE_COLOUR
from tests.pipelines.support import (
    colour_teacher,
    config_of,
    experiment,
    folder_source,
    picture,
    plain,
    png,
    shard_bytes,
    tar_bytes,
    write_folder,
)

FULL_PICTURE = {"kind": "random_resized_crop", "count": 6, "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "seed": 1}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures(tmp_path):
    return write_folder(tmp_path / "pictures", per_class=5)


class Bench:
    """A config, resolved: a labeller and the tasks of its source."""

    def __init__(self, data, folder):
        self.config = config_of(data)
        self.teacher = load_teacher(self.config.teacher)
        self.source = open_source(self.config.source)
        self.request = resolve_request(self.config, facts=TeacherFacts.of(self.teacher))
        self.plan = make_plan(
            Cache.at(str(folder / "cache")),
            request=self.request,
            units=index_source(self.source).units,
            num_views=self.config.views.count,
            views_per_part=self.config.generation.views_per_part,
        )

    def labeller(self, **generation):
        return UnitLabeller(
            teacher=self.teacher,
            source=self.source,
            request=self.request,
            config=self.config.generation.model_copy(update=generation),
        )

    def label(self, number=0, **generation):
        return self.labeller(**generation).label(self.plan.tasks[number])

    def label_all(self):
        return [self.labeller().label(task) for task in self.plan.tasks]

    def expected_logits(self, data, *, key, view):
        """What the teacher says of one view, computed alone."""
        image = decode_image(data, max_pixels=10**6)
        params = draw_view_params(self.request.view, key=key, view_index=view, width=image.width, height=image.height)
        return self.teacher.logits(render(image, params, interpolation=self.request.view.interpolation)[None]).numpy()[0]


def bench(tmp_path, source, *, teacher=None, **sections):
    sections = {"target": {"k": 3, "codec": {"kind": "exact"}}, **sections}
    data = experiment(cache=tmp_path / "cache", source=source, teacher=teacher or colour_teacher(), **sections)
    return Bench(data, tmp_path)


def blocks(labelled):
    """The label blocks of a part by view."""
    found = {}
    for extent in labelled.record.blocks:
        block = decode_label_block(labelled.data[extent.offset : extent.offset + extent.num_bytes], origin="test")
        found.setdefault(block.view, []).append(block)
    return found


def extent_bytes(labelled, extent):
    return labelled.data[extent.offset : extent.offset + extent.num_bytes]


def letters(labelled):
    return [(letter.key, letter.position, letter.view, letter.stage) for letter in labelled.record.dead_letters]


def test_a_part_holds_the_teachers_distribution_of_every_view(tmp_path, pictures):
    made = bench(tmp_path, folder_source(pictures, unit_size=15), views=3, generation={"views_per_part": 3})
    labelled = made.label()
    table = decode_samples(extent_bytes(labelled, labelled.record.samples), origin="test")
    assert table.keys == tuple(f"{name}/{number:03d}.png" for name in ("blue", "green", "red") for number in range(5))
    assert table.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    sums = np.zeros(3)
    for view, (block,) in blocks(labelled).items():
        for position, key in enumerate(table.keys):
            logits = made.expected_logits((pictures / key).read_bytes(), key=key, view=view).astype(np.float64)
            probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            stored = block.soft_labels
            np.testing.assert_allclose(stored.probs[position], probs[stored.class_ids[position]], atol=2e-3)
            sums += probs
    assert sorted(blocks(labelled)) == [0, 1, 2]
    means = decode_class_means(extent_bytes(labelled, labelled.record.class_means), num_classes=3, origin="test")
    np.testing.assert_allclose(means, sums / 45, rtol=2e-3)
    statistics = labelled.record.statistics
    assert (statistics.num_rows, statistics.num_labelled_rows, labelled.record.dead_letters) == (45, 45, ())
    assert labelled.record.provenance["device"] == "cpu"


@pytest.mark.parametrize("generation", [{"decode_threads": 1}, {"decode_threads": 7}, {"decode_threads": 3}])
def test_bytes_do_not_depend_on_threads_or_on_what_was_labelled_before(tmp_path, pictures, generation):
    made = bench(tmp_path, folder_source(pictures))
    first = made.label_all()
    used = made.labeller(**generation)
    again = [used.label(task) for task in reversed(made.plan.tasks)]
    assert [one.data for one in first] == [one.data for one in reversed(again)]
    assert [one.record.to_bytes() for one in first] == [one.record.to_bytes() for one in reversed(again)]


def test_a_view_has_the_same_rows_in_whichever_part_it_is_computed(tmp_path, pictures):
    one, three = (
        bench(tmp_path / str(size), folder_source(pictures, unit_size=15), views=3, generation={"views_per_part": size})
        for size in (1, 3)
    )
    whole = blocks(three.label())
    for number in range(3):
        ((view, (block,)),) = blocks(one.label(number)).items()
        assert view == number
        np.testing.assert_array_equal(block.soft_labels.probs, whole[view][0].soft_labels.probs)
        np.testing.assert_array_equal(block.view_digests, whole[view][0].view_digests)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 15, 64])
def test_the_padding_of_the_last_batch_leaves_no_trace(tmp_path, pictures, batch_size):
    made = bench(tmp_path, folder_source(pictures, unit_size=15), views=1, generation={"batch_size": batch_size})
    sizes = []
    network = made.teacher.network

    def watched(inputs):
        sizes.append(len(inputs))
        return network(inputs)

    made.teacher = replace(made.teacher, network=watched)
    labelled = made.label()
    assert set(sizes) == {batch_size}
    assert len(sizes) == -(-15 // batch_size)
    ((block,),) = blocks(labelled).values()
    assert (block.num_samples, len(block.soft_labels), labelled.record.statistics.num_rows) == (15, 15, 15)
    means = decode_class_means(extent_bytes(labelled, labelled.record.class_means), num_classes=3, origin="test")
    assert means.sum() == pytest.approx(1, abs=2e-3)


def write_pictures(folder, images):
    (folder / "a").mkdir(parents=True)
    for number, image in enumerate(images):
        (folder / "a" / f"{number}.png").write_bytes(image)
    return folder_source(folder, unit_size=64, labelled=False)


def test_a_sample_on_which_the_teacher_raises_costs_one_row(tmp_path):
    images = [picture(n % 3, n) for n in range(10)]
    clean = bench(tmp_path / "clean", write_pictures(tmp_path / "clean_pictures", images), views=1).label()
    images[5] = plain(RAISE_COLOUR)
    labelled = bench(tmp_path / "bad", write_pictures(tmp_path / "bad_pictures", images), views=1).label()
    assert letters(labelled) == [("a/5.png", 5, 0, "teacher")]
    assert labelled.record.dead_letters[0].reason == "this picture is one too many"
    ((good,),), ((block,),) = blocks(clean).values(), blocks(labelled).values()
    assert block.positions.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    np.testing.assert_array_equal(block.soft_labels.probs, np.delete(good.soft_labels.probs, 5, axis=0))


@pytest.mark.parametrize("position", [8, 0])
def test_a_sample_alone_in_its_batch_may_fail_too(tmp_path, position):
    images = [picture(n % 3, n) for n in range(9)]
    images[position] = plain(RAISE_COLOUR)
    generation = {"batch_size": 4 if position == 8 else 1}
    labelled = bench(tmp_path, write_pictures(tmp_path / "pictures", images), views=1, generation=generation).label()
    assert letters(labelled) == [(f"a/{position}.png", position, 0, "teacher")]
    assert labelled.record.statistics.num_rows == 8


def test_nan_in_one_view_is_a_dead_letter_of_that_view_only(tmp_path):
    # The left edge makes the network fail; a mirrored view has the other edge there.
    half = np.zeros((20, 20, 3), dtype=np.uint8)
    half[:, :10] = NAN_COLOUR
    images = [picture(0, 0), png(half), picture(1, 1)]
    made = bench(tmp_path, write_pictures(tmp_path / "pictures", images), views=FULL_PICTURE, generation={"views_per_part": 6})
    flipped = [draw_view_params(made.request.view, key="a/1.png", view_index=v, width=20, height=20).flip for v in range(6)]
    assert 0 < sum(flipped) < 6
    labelled = made.label()
    assert letters(labelled) == [("a/1.png", 1, view, "teacher") for view in range(6) if not flipped[view]]
    assert {letter.reason for letter in labelled.record.dead_letters} == {"the teacher's logits hold NaN or infinity"}
    for view, (block,) in blocks(labelled).items():
        assert block.positions.tolist() == ([0, 1, 2] if flipped[view] else [0, 2])


def test_a_sample_that_cannot_be_decoded_is_one_letter_for_all_views(tmp_path):
    images = [picture(0, 0), b"not a picture", picture(1, 1), b"", picture(2, 2)]
    labelled = bench(tmp_path, write_pictures(tmp_path / "pictures", images)).label()
    assert letters(labelled) == [("a/1.png", 1, None, "decode"), ("a/3.png", 3, None, "decode")]
    for (block,) in blocks(labelled).values():
        assert block.positions.tolist() == [0, 2, 4]
        assert block.num_samples == 5
    assert labelled.record.num_samples == 5
    assert labelled.record.statistics.num_rows == 6


@pytest.mark.parametrize("codec", [{"kind": "exact"}, {"kind": "compact"}])
def test_a_unit_of_nothing_but_bad_samples_is_a_part_without_rows(tmp_path, codec):
    made = bench(tmp_path, write_pictures(tmp_path / "pictures", [b"bad"] * 6), target={"k": 3, "codec": codec})
    labelled = made.label()
    assert len(labelled.record.dead_letters) == 6
    assert labelled.record.statistics.num_rows == 0
    assert labelled.teacher_seconds == 0
    for (block,) in blocks(labelled).values():
        assert (block.num_samples, len(block.soft_labels)) == (6, 0)


def test_a_shard_without_samples_is_a_part_without_blocks(tmp_path):
    (tmp_path / "empty.tar").write_bytes(tar_bytes([]))
    (tmp_path / "full.tar").write_bytes(shard_bytes(range(4)))
    made = bench(tmp_path, {"kind": "webdataset", "path": str(tmp_path / "*.tar")}, views=1)
    empty, full = made.label_all()
    assert (empty.record.num_samples, empty.record.blocks) == (0, ())
    assert full.record.num_samples == 4
    assert decode_samples(extent_bytes(empty, empty.record.samples), origin="test").keys == ()


def test_a_teacher_that_fails_on_everything_stops_the_run(tmp_path, pictures):
    teacher = {"kind": "factory", "name": "tests.pipelines.networks:broken_after_loading", "device": "cpu"}
    made = bench(tmp_path, folder_source(pictures), teacher=teacher)
    with pytest.raises(
        TeacherError,
        match=r"fails on every sample of a batch of unit '00000-00008', and on black ones: .*no kernel for this batch",
    ):
        made.label()


@pytest.mark.parametrize("change", ["other bytes", "vanished", "truncated"])
def test_a_unit_that_changes_while_it_is_labelled_gives_no_part(tmp_path, pictures, change):
    made = bench(tmp_path, folder_source(pictures))
    victim = pictures / "blue" / "003.png"
    if change == "other bytes":
        victim.write_bytes(picture(0, 4))
    elif change == "vanished":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-7])
    with pytest.raises(SourceError, match=r"unit '00000-00008' changed since it was indexed.*Run decant label again"):
        made.label()


@pytest.mark.parametrize("numbers", [range(5), range(7), range(1, 7)])
def test_a_shard_that_lost_gained_or_swapped_samples_gives_no_part(tmp_path, numbers):
    shard = tmp_path / "a.tar"
    shard.write_bytes(shard_bytes(range(6)))
    made = bench(tmp_path, {"kind": "webdataset", "path": str(shard)})
    shard.write_bytes(shard_bytes(numbers))
    with pytest.raises(SourceError, match=r"unit 'a.tar' changed since it was indexed"):
        made.label()


def test_statistics_count_agreement_and_what_storing_did(tmp_path, pictures):
    labelled = bench(
        tmp_path, folder_source(pictures, unit_size=15), views=2, target={"k": 1, "codec": {"kind": "exact"}}
    ).label()
    top = np.concatenate([block.soft_labels.class_ids[:, 0] for view in blocks(labelled).values() for block in view])
    kept = np.concatenate([block.soft_labels.probs[:, 0] for view in blocks(labelled).values() for block in view])
    statistics = labelled.record.statistics
    assert statistics.num_agreeing_rows == int((top == np.tile(np.repeat([0, 1, 2], 5), 2)).sum())
    assert statistics.mass_kept_sum == pytest.approx(float(kept.sum()), rel=1e-3)
    assert (statistics.num_rows, statistics.entries_sum, statistics.num_empty_rows) == (30, 30, 0)
    assert 0 <= statistics.codec_kl_sum / 30 <= statistics.codec_kl_max < 1e-3
