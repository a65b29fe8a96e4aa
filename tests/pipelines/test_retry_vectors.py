"""Dead letters of vectors are tried again with their whole unit, and what is gained is told by rows."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import transforms
from pipelines.label import plan_run, run_label
from storage.catalogue import show_label_set
from tests.pipelines.support import (
    config_of,
    experiment,
    folder_source,
    png,
    save_teacher,
    snapshot,
    timm_teacher,
    write_folder,
)


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    yield
    transforms._teachers.clear()


def label(config, *, retry=False):
    return run_label(plan_run(config, progress=False, retry_dead_letters=retry), progress=False)


def test_rows_of_vectors_are_counted_not_letters(tmp_path):
    """A letter of all views becomes letters of some of them: what the other views have now counts."""
    write_folder(tmp_path / "pictures", per_class=2)
    pixels = np.full((90, 90, 3), (20, 200, 20), dtype=np.uint8)
    pixels[:, :30] = (255, 0, 0)
    (tmp_path / "pictures" / "red" / "001.png").write_bytes(png(pixels))
    data = experiment(
        cache=tmp_path / "cache",
        source=folder_source(tmp_path / "pictures", unit_size=6),
        teacher=timm_teacher(save_teacher(tmp_path / "teacher.safetensors")),
        views=3,
        generation={"dead_letter_limit": 0.9, "max_image_pixels": 80 * 80, "views_per_part": 3},
    )
    data["target"] = {"kind": "hidden_states", "layers": [1]}
    first = label(config_of(data))
    assert (first.num_rows, first.num_dead_letters) == (15, 1)
    module = transforms.shared_teacher(config_of(data).teacher).vector_network.module

    def refuse(_module, inputs):
        edge = inputs[0][:, :, :, 0].mean(dim=2)
        if (edge[:, 0] - edge[:, 1] > 1.9).any():
            raise RuntimeError("this edge is too red")

    data["generation"]["max_image_pixels"] = 10**6
    hook = module.patch_embed.register_forward_pre_hook(refuse)
    report = label(config_of(data), retry=True)
    letters = show_label_set(data["cache"], name="tiny", with_dead_letters=True)["dead_letters"]
    assert {(letter["key"], letter["stage"]) for letter in letters} == {("red/001.png", "teacher")}
    assert None not in {letter["view"] for letter in letters}
    assert 1 <= len(letters) < 3
    cured = 3 - len(letters)
    assert (report.num_retried_rows, report.num_cured_rows, report.num_rows) == (3, cured, 15 + cured)
    # As many dead rows as before are no gain.
    before = snapshot(data["cache"])
    assert label(config_of(data), retry=True).num_cured_rows == 0
    assert snapshot(data["cache"]) == before
    hook.remove()
    assert label(config_of(data), retry=True).num_dead_letters == 0
