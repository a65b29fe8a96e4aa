"""Samples become views in threads, in order, and a bad one becomes a dead letter."""

from __future__ import annotations

import re
import threading
import time

import numpy as np
import pytest

from pipelines.rendering import SampleRenderer, map_ahead
from storage.block_fields import DIGEST_STRIDE
from storage.images import decode_image
from storage.sources import Sample
from storage.specs import RandomResizedCropView
from storage.views import draw_view_params, render, view_digest
from tests.pipelines.support import bomb, picture

VIEW = RandomResizedCropView(size=(16, 16), scale=(0.3, 1.0), seed=3)


def test_results_come_in_the_order_of_the_items_however_long_each_takes():
    def slow_first(number):
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number * number

    assert list(map_ahead(slow_first, range(40), threads=4, ahead=8)) == [number * number for number in range(40)]


def test_no_more_than_the_look_ahead_is_taken_from_the_source():
    taken = []

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    results = map_ahead(lambda number: number, items(), threads=2, ahead=5)
    assert taken == []
    for position in range(50):
        assert next(results) == position
        assert len(taken) == min(position + 6, 50)


def test_an_error_is_raised_at_its_item_and_stops_the_others():
    started = []

    def fail_at_three(number):
        started.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    results = map_ahead(fail_at_three, range(100), threads=2, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(started) < 10
    assert next(results, None) is None


def test_an_error_of_the_source_comes_through_and_no_thread_stays():
    def items():
        yield from range(3)
        raise OSError("the source is gone")

    before = threading.active_count()
    with pytest.raises(OSError, match="the source is gone"):
        list(map_ahead(lambda number: number, items(), threads=3, ahead=10))
    assert threading.active_count() == before


def test_leaving_early_closes_the_source_and_the_threads():
    closed = []

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    before = threading.active_count()
    source = items()
    results = map_ahead(lambda number: number, source, threads=2, ahead=4)
    next(results)
    results.close()
    source.close()
    assert closed == [True]
    assert threading.active_count() == before


def sample(image, *, position=0, key="a/0.png", error=None):
    return Sample(position=position, key=key, label=0, data=image, error=error)


def renderer(view=VIEW, *, first_view=0, num_views=2, max_pixels=10**6, block_rows=1000):
    return SampleRenderer(view=view, first_view=first_view, num_views=num_views, max_pixels=max_pixels, block_rows=(block_rows,))


def test_views_are_those_that_the_student_will_draw():
    data = picture(0, 1)
    rendered = renderer(first_view=3, num_views=4)(sample(data, position=DIGEST_STRIDE))
    image = decode_image(data, max_pixels=10**6)
    for index in range(4):
        params = draw_view_params(VIEW, key="a/0.png", view_index=3 + index, width=image.width, height=image.height)
        expected = render(image, params, interpolation=VIEW.interpolation)
        np.testing.assert_array_equal(rendered.views[index], expected)
        assert rendered.digests[index] == view_digest(expected)
    assert len({view.tobytes() for view in rendered.views}) == 4
    assert rendered.dead_letter is None


def test_a_view_does_not_depend_on_which_others_are_rendered_with_it():
    together = renderer(first_view=0, num_views=5)(sample(picture(1, 2)))
    alone = renderer(first_view=4, num_views=1)(sample(picture(1, 2)))
    np.testing.assert_array_equal(together.views[4], alone.views[0])


def test_digests_stand_only_where_they_are_stored():
    assert (renderer()(sample(picture(0, 1), position=DIGEST_STRIDE - 1)).digests == 0).all()
    assert (renderer()(sample(picture(0, 1), position=0)).digests != 0).all()
    # Offsets in a block count, not positions in the unit.
    assert (renderer(block_rows=100)(sample(picture(0, 1), position=100 + DIGEST_STRIDE)).digests != 0).all()
    assert (renderer(block_rows=100)(sample(picture(0, 1), position=2 * DIGEST_STRIDE)).digests == 0).all()


@pytest.mark.parametrize(
    ("image", "error", "stage", "reason"),
    [
        (None, "the file cannot be read: PermissionError", "read", "the file cannot be read: PermissionError"),
        (b"", None, "decode", r"the picture is empty \(0 bytes\)"),
        (b"<html></html>", None, "decode", "not an image"),
        (picture(0, 0)[:200], None, "decode", "truncated"),
        (bomb(), None, "decode", "60000 x 60000 pixels exceed the limit of 1000000"),
    ],
)
def test_a_bad_sample_is_a_dead_letter_with_key_stage_and_reason(image, error, stage, reason):
    rendered = renderer()(sample(image, position=7, key="b/x.png", error=error))
    assert rendered.views is None
    letter = rendered.dead_letter
    assert (letter.key, letter.position, letter.view, letter.stage) == ("b/x.png", 7, None, stage)
    assert re.search(reason, letter.reason)
