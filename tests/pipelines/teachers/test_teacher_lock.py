"""An engine may work on several units in one process; the teacher takes one batch at a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from pipelines.teachers import load_teacher
from tests.pipelines.support import colour_teacher, config_of, experiment, folder_source


def test_batches_of_several_threads_come_one_after_the_other(tmp_path):
    config = config_of(experiment(cache=tmp_path, source=folder_source(tmp_path), teacher=colour_teacher()))
    teacher = load_teacher(config.teacher)
    inside, seen = [], []

    def watched(inputs):
        inside.append(threading.get_ident())
        seen.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return teacher.network(inputs)

    alone = replace(teacher, network=watched)
    pictures = np.zeros((2, *teacher.preprocessing.input_size, 3), dtype=np.uint8)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: alone.logits(pictures).numpy(), range(8)))
    assert seen == [1] * 8
    assert all(np.array_equal(one, found[0]) for one in found)
