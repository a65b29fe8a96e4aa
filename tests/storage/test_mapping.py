"""Answers come in order, a few at a time, and errors where they are due."""

from __future__ import annotations

import threading
import time

import pytest

from storage.mapping import map_ahead


@pytest.mark.parametrize("num_threads", [1, 3])
def test_answers_come_in_the_order_of_the_values(num_threads):
    def slow_at_first(value):
        time.sleep(0.02 if value == 0 else 0)
        return value * value

    assert list(map_ahead(slow_at_first, range(100), num_threads=num_threads)) == [value * value for value in range(100)]
    assert list(map_ahead(slow_at_first, [], num_threads=num_threads)) == []


def test_several_are_called_at_a_time_and_not_many_ahead():
    together = threading.Barrier(3, timeout=10)
    asked = 0

    def values():
        nonlocal asked
        for number in range(10_000):
            asked += 1
            yield number

    def meet(value):
        if value < 3:
            together.wait()
        return value

    answers = map_ahead(meet, values(), num_threads=3)
    assert next(answers) == 0
    assert asked <= 12
    answers.close()
    assert threading.active_count() < 10


def test_an_error_comes_when_its_answer_is_due():
    def refuse_five(value):
        if value == 5:
            raise ValueError("five")
        return value

    answers = map_ahead(refuse_five, range(100), num_threads=2)
    assert [next(answers) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(answers)
