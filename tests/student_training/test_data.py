"""Order of batches: the same for any number of loader workers and processes, from any step on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from storage.errors import ConfigError, MismatchError, SampleError, ViewMismatchError
from storage.specs import RandomResizedCropView
from student_training.data import Share, StepDataset, load_batches
from student_training.plan import plan_evaluation, plan_training
from student_training.rendering import Renderer, num_decode_threads
from tests.student_training.support import CLASSES, MAX_PIXELS, VIEW, TeachingStream, source_stream, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), per_class=9)


def open_dataset(stream, *, world_size=1, rank=0, start=0, batch_size=6, epochs=2, size=VIEW.size, view=VIEW, **options):
    return StepDataset(
        stream,
        plan=plan_training(stream, epochs=epochs, batch_size=batch_size, world_size=world_size),
        renderer=Renderer(view=view, size=size, max_pixels=MAX_PIXELS),
        seed=3,
        window_blocks=3,
        start=start,
        share=Share(rank=rank, world_size=world_size),
        **options,
    )


def contents(batches):
    return [(batch.step, batch.keys, batch.images, batch.labels, batch.targets) for batch in batches]


def assert_same(one, other):
    assert [(step, keys) for step, keys, *_ in one] == [(step, keys) for step, keys, *_ in other]
    for (_, _, images, labels, targets), (_, _, other_images, other_labels, other_targets) in zip(one, other, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
        assert torch.equal(targets.class_ids, other_targets.class_ids)
        assert torch.equal(targets.probs, other_targets.probs)


@pytest.fixture(scope="module")
def straight(pictures):
    return contents(load_batches(open_dataset(TeachingStream(source_stream(pictures))), workers=0))


def test_batches_are_slices_of_a_shuffled_epoch(straight):
    assert [step for step, *_ in straight] == list(range(8))
    for epoch in (straight[:4], straight[4:]):
        keys = [key for _, batch_keys, *_ in epoch for key in batch_keys]
        assert len(keys) == len(set(keys)) == 24
        assert keys != sorted(keys)
    assert [keys for _, keys, *_ in straight[:4]] != [keys for _, keys, *_ in straight[4:]]
    images = straight[0][2]
    assert images.shape == (6, 3, 16, 16)
    assert images.dtype == torch.uint8


@pytest.mark.parametrize(("workers", "start_method"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_order_does_not_depend_on_loader_workers(pictures, straight, workers, start_method):
    dataset = open_dataset(TeachingStream(source_stream(pictures)), num_threads=2)
    assert_same(contents(load_batches(dataset, workers=workers, start_method=start_method)), straight)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_each_batch(pictures, straight, world_size):
    stream = TeachingStream(source_stream(pictures))
    shares = [
        contents(load_batches(open_dataset(stream, world_size=world_size, rank=rank), workers=0)) for rank in range(world_size)
    ]
    for step, (_, keys, images, *_) in enumerate(straight):
        assert [key for share in shares for key in share[step][1]] == keys
        assert torch.equal(torch.cat([share[step][2] for share in shares]), images)


@pytest.mark.parametrize("start", range(8))
def test_restart_at_any_step(pictures, straight, start):
    assert_same(
        contents(load_batches(open_dataset(TeachingStream(source_stream(pictures)), start=start), workers=0)), straight[start:]
    )


def test_restart_with_workers(pictures, straight):
    dataset = open_dataset(TeachingStream(source_stream(pictures)), start=3)
    assert_same(contents(load_batches(dataset, workers=2)), straight[3:])


def test_reading_leaves_the_global_generator_alone(pictures):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(load_batches(open_dataset(source_stream(pictures)), workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_reads_every_row_once_in_order(pictures):
    stream = source_stream(pictures)
    plan = plan_evaluation(stream, batch_size=8)
    keys = {}
    for rank in range(3):
        dataset = StepDataset(
            stream,
            plan=plan,
            renderer=Renderer(view=VIEW, size=VIEW.size, max_pixels=MAX_PIXELS),
            seed=0,
            window_blocks=0,
            share=Share(rank=rank, world_size=3),
        )
        for batch in load_batches(dataset, workers=0):
            keys.setdefault(batch.step, []).extend(batch.keys)
    merged = [key for step in sorted(keys) for key in keys[step]]
    assert merged == sorted(merged)
    assert len(merged) == 27


def test_plan_positions(pictures):
    plan = plan_training(source_stream(pictures), epochs=2, batch_size=6, world_size=1)
    assert (plan.num_steps, plan.epoch_rows, plan.steps_per_epoch) == (8, (27, 27), 4)
    assert [plan.position(step) for step in (0, 3, 4, 8)] == [(0, 0), (0, 3), (1, 0), (2, 0)]
    assert plan.rows(5, rank=1, world_size=4) == (1, 7, 9)
    with pytest.raises(ConfigError, match="some would have no rows"):
        plan_training(source_stream(pictures), epochs=1, batch_size=2, world_size=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_other_pixels_than_the_teacher_saw_stop_training(pictures, workers):
    stream = TeachingStream(source_stream(pictures))
    other_view = RandomResizedCropView(size=(16, 16), scale=(0.3, 1.0), seed=8)
    dataset = open_dataset(stream, view=other_view)
    with pytest.raises(
        ViewMismatchError, match=r"sample '.*', view 0: the student rendered .*digest [0-9a-f]{16}.*label again"
    ) as caught:
        list(load_batches(dataset, workers=workers))
    assert "Traceback" not in str(caught.value)
    unchecked = open_dataset(TeachingStream(source_stream(pictures), digests=False), view=other_view)
    assert len(list(load_batches(unchecked, workers=0))) == 8


def test_digests_are_checked_at_the_teachers_size_when_the_student_has_another(pictures):
    batch = next(load_batches(open_dataset(TeachingStream(source_stream(pictures)), size=(12, 10)), workers=0))
    assert batch.images.shape == (6, 3, 12, 10)
    larger = RandomResizedCropView(size=(32, 32), scale=(0.3, 1.0), seed=7)
    with pytest.raises(ViewMismatchError):
        next(load_batches(open_dataset(TeachingStream(source_stream(pictures)), view=larger), workers=0))


def test_views_change_with_the_epoch(pictures):
    stream = source_stream(pictures)
    dataset = open_dataset(stream)
    by_epoch = [{}, {}]
    for batch in load_batches(dataset, workers=0):
        by_epoch[batch.step // 4].update(zip(batch.keys, batch.images, strict=True))
    common = by_epoch[0].keys() & by_epoch[1].keys()
    assert common
    assert not any(torch.equal(by_epoch[0][key], by_epoch[1][key]) for key in common)


def test_a_broken_picture_is_named(tmp_path):
    folder = write_pictures(tmp_path / "pictures", per_class=2)
    (folder / CLASSES[1] / "001.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    dataset = open_dataset(source_stream(folder), epochs=1)
    with pytest.raises(SampleError, match=r"sample 'green/001.*', view 0: .*damaged"):
        list(load_batches(dataset, workers=0))


def test_labels_must_fit_the_student(pictures):
    with pytest.raises(MismatchError, match="has label 2 but the student has 2 classes"):
        list(load_batches(open_dataset(source_stream(pictures), num_classes=2, uses_labels=True), workers=0))
    stream = TeachingStream(source_stream(pictures), num_classes=5)
    with pytest.raises(MismatchError, match="stored labels are over 5 classes and the student has 3"):
        list(load_batches(open_dataset(stream, num_classes=3, kind="cached"), workers=0))


def test_read_only_labels_become_tensors_without_a_warning(pictures):
    class ReadOnly(TeachingStream):
        def soft_labels(self, labels):
            made = super().soft_labels(labels)
            made.probs.flags.writeable = False
            return made

    batch = next(load_batches(open_dataset(ReadOnly(source_stream(pictures))), workers=0))
    assert np.allclose(batch.targets.probs[:, 0], 0.7)


def test_decode_threads_share_the_cores():
    assert num_decode_threads(loader_workers=0, local_processes=1) >= 1
    assert num_decode_threads(loader_workers=1000, local_processes=1) == 1
