"""Pictures that cannot be read cost themselves and nothing else: they are left out, counted and listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from storage.errors import DeadLetterLimitError, SampleError
from storage.streams.source_stream import SourceStream
from student_training.data import PictureCollate
from student_training.left_out import DeadLetters, LeftOut
from student_training.metrics import read_metrics
from student_training.objective import build_objective
from student_training.picture_terms.batch import PictureTermCollate
from student_training.rendering import Renderer
from student_training.trainer import train
from tests.student_training.support import MAX_PIXELS, VIEW, TeachingStream, make_config, source_stream, write_pictures
from tests.student_training.test_processes import SETTINGS as PROCESS_SETTINGS
from tests.student_training.test_processes import start
from tests.student_training.test_resume import StopTraining, assert_same_student, figures

BROKEN = "green/003.png"
GONE = "red/011.png"
SETTINGS = {"checkpoint_every_steps": 2, "log_every_steps": 3, "optimizer": {"learning_rate": 1e-3}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def spoilt(pictures, tmp_path):
    return spoil(pictures, tmp_path / "spoilt")


def spoil(pictures, folder):
    """A copy with a picture that is cut short and one that cannot be opened."""
    shutil.copytree(pictures, folder)
    (folder / BROKEN).write_bytes((folder / BROKEN).read_bytes()[:-300])
    (folder / GONE).unlink()
    (folder / GONE).symlink_to("nowhere.png")
    return folder


def run(pictures, folder, *, stream=None, limit=0.1, teacher=None, evaluated=None, **changes):
    config = make_config(evaluated or pictures, folder, evaluation=evaluated is not None, **{**SETTINGS, **changes})
    config = config.model_copy(update={"generation": config.generation.model_copy(update={"dead_letter_limit": limit})})
    return train(config, stream=stream or source_stream(pictures), view=VIEW, num_classes=3, teacher=teacher)


def listed(folder):
    path = folder / "dead_letters.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Unlabelled(SourceStream):
    """Whole pictures, of which two have no label."""

    def read(self, **arguments):
        rows = super().read(**arguments)
        rows.labels[[row for row, key in enumerate(rows.keys) if key in (BROKEN, GONE)]] = -1
        return rows


@pytest.mark.parametrize("workers", [0, 2])
def test_the_others_train_the_student_as_if_those_had_no_label(pictures, spoilt, tmp_path, workers):
    result = run(spoilt, tmp_path / "spoilt-run", loader_workers=workers)
    assert (result.num_left_out, result.num_left_out_of_evaluation) == (2, 0)
    found = {letter["key"]: letter for letter in listed(tmp_path / "spoilt-run")}
    assert found.keys() == {BROKEN, GONE}
    assert found[BROKEN]["stage"] == "decode"
    assert "truncated or damaged" in found[BROKEN]["reason"]
    assert (found[GONE]["stage"], found[GONE]["use"]) == ("read", "training")
    assert all(1 <= letter["step"] <= 6 for letter in found.values())
    whole = source_stream(pictures)
    whole.__class__ = Unlabelled
    run(pictures, tmp_path / "whole-run", stream=whole)
    assert_same_student(tmp_path / "spoilt-run", tmp_path / "whole-run")
    assert figures(tmp_path / "spoilt-run") == figures(tmp_path / "whole-run")
    assert not listed(tmp_path / "whole-run")


def test_a_live_teacher_teaches_the_others(spoilt, tmp_path):
    def teacher(views):
        return torch.tensor(views.reshape(len(views), -1, 3).mean(axis=1)[:, ::-1] / 16.0, dtype=torch.float32)

    result = run(spoilt, tmp_path / "run", teacher=teacher, targets={"kind": "live"}, epochs=1)
    assert result.num_left_out == 2
    objective = build_objective(make_config(spoilt, tmp_path).training.loss, kind="live")
    logits, teachers = torch.randn(2, 5, 3)
    labels, present = torch.full((5,), -1), torch.tensor([True, False, True, True, False])
    some = objective(logits, labels=labels, teacher_logits=teachers, num_rows=3, present=present)
    alone = objective(logits[present], labels=labels[present], teacher_logits=teachers[present])
    torch.testing.assert_close(some["loss"], alone["loss"])


class Stopping(SourceStream):
    """Fails, as by Ctrl-C, when the rows of a step are read."""

    stop_at = 0

    def read(self, **arguments):
        self.stop_at -= 1
        if self.stop_at == 0:
            raise StopTraining
        return super().read(**arguments)


@pytest.mark.parametrize("stop_at", [3, 5, 9])
def test_a_run_that_goes_on_lists_what_one_without_a_break_lists(spoilt, tmp_path, stop_at):
    run(spoilt, tmp_path / "straight")
    stream = source_stream(spoilt)
    stream.__class__, stream.stop_at = Stopping, stop_at
    with pytest.raises(StopTraining):
        run(spoilt, tmp_path / "stopped", stream=stream)
    assert run(spoilt, tmp_path / "stopped").num_left_out == 2
    assert listed(tmp_path / "stopped") == listed(tmp_path / "straight")
    assert_same_student(tmp_path / "stopped", tmp_path / "straight")


def test_too_many_end_the_run_and_a_higher_limit_lets_it_go_on(spoilt, tmp_path):
    run(spoilt, tmp_path / "straight")
    said = r"2 of 48 pictures of the source cannot be read, more than generation.dead_letter_limit 0.03 allows; the first is '"
    with pytest.raises(DeadLetterLimitError, match=said) as caught:
        run(spoilt, tmp_path / "run", limit=0.03, log_every_steps=1)
    assert "dead_letters.jsonl lists them" in str(caught.value)
    assert len(listed(tmp_path / "run")) == 2
    last = max(letter["step"] for letter in listed(tmp_path / "run"))
    again = run(spoilt, tmp_path / "run")
    assert again.resumed_from_step == (last - 1) // 2 * 2
    assert_same_student(tmp_path / "run", tmp_path / "straight")


def test_a_run_begun_anew_has_no_list_of_the_one_before(pictures, spoilt, tmp_path):
    run(spoilt, tmp_path / "run")
    config = make_config(pictures, tmp_path / "run", **SETTINGS)
    train(config, stream=source_stream(pictures), view=VIEW, num_classes=3, resume=False)
    assert not listed(tmp_path / "run")


def test_evaluation_leaves_out_what_it_cannot_read(pictures, spoilt, tmp_path):
    result = run(pictures, tmp_path / "run", evaluated=spoilt)
    assert (result.num_evaluated, result.num_left_out, result.num_left_out_of_evaluation) == (46, 0, 2)
    assert [(letter["key"], letter["use"], letter["step"]) for letter in listed(tmp_path / "run")] == [
        (BROKEN, "evaluation", 6),
        (GONE, "evaluation", 6),
    ]
    evaluations = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "evaluation"]
    assert [(line["num_rows"], line["num_left_out"]) for line in evaluations] == [(46, 2), (46, 2)]


def test_an_evaluation_that_fails_costs_no_step(pictures, spoilt, tmp_path):
    run(pictures, tmp_path / "straight", evaluated=pictures)
    folder = tmp_path / "run"
    with pytest.raises(DeadLetterLimitError, match=r"2 of 48 pictures of training.evaluation.source cannot be read"):
        run(pictures, folder, evaluated=spoilt, limit=0.0, checkpoint_every_steps=None)
    for key in (BROKEN, GONE):
        (spoilt / key).unlink()
        shutil.copy(pictures / key, spoilt / key)
    again = run(pictures, folder, evaluated=spoilt, limit=0.0, checkpoint_every_steps=None)
    assert again.resumed_from_step == 6
    assert (again.num_evaluated, again.num_left_out_of_evaluation) == (48, 0)
    assert not listed(folder)
    assert_same_student(folder, tmp_path / "straight")
    assert figures(folder) == figures(tmp_path / "straight")


def test_pictures_that_a_teacher_has_labelled_must_be_there(pictures, spoilt, tmp_path):
    stream = TeachingStream(source_stream(spoilt), digests=False)
    with pytest.raises(SampleError, match=r"the teacher could read it when it was labelled, so put the picture back"):
        run(spoilt, tmp_path / "run", stream=stream, targets={"kind": "cached"})


def test_rows_that_are_left_out_count_in_no_divisor(spoilt):
    stream = source_stream(spoilt)
    sizes = stream.block_rows(epoch=0)
    rows = stream.read(
        epoch=0, block_ids=np.repeat(np.arange(len(sizes)), sizes), rows=np.concatenate([np.arange(size) for size in sizes])
    )
    renderer = Renderer(view=VIEW, size=VIEW.size, max_pixels=MAX_PIXELS, leaves_out=True)
    pictures = PictureCollate(renderer=renderer, num_classes=3, kind="hard", uses_labels=True)
    batch = PictureTermCollate(pictures=pictures, num_tokens=5)(rows, step=0, pool=None)
    absent = [rows.keys.index(BROKEN), rows.keys.index(GONE)]
    assert len(batch) == 46
    assert {BROKEN, GONE}.isdisjoint(batch.keys)
    assert sorted(found.key for found in batch.left_out) == [BROKEN, GONE]
    assert np.flatnonzero(batch.labels == -1).tolist() == absent
    assert np.flatnonzero(~batch.attention_mask.all(dim=1)).tolist() == absent
    assert batch.images.shape[0] == 48
    assert torch.equal(batch.images[absent[0]], batch.images[0])


def test_a_picture_is_listed_once(tmp_path):
    letters, accelerator = DeadLetters(tmp_path, limit=0.5, num_samples=4), Accelerator(cpu=True)
    for step in (7, 3):
        letters.add([LeftOut(key="b", stage="decode", reason="why"), LeftOut(key="a", stage="read", reason="so")], step=step)
    letters.settle(accelerator)
    letters.add([LeftOut(key="a", stage="read", reason="so")], step=11)
    letters.settle(accelerator)
    assert [(line["key"], line["step"]) for line in listed(tmp_path)] == [("a", 3), ("b", 3)]
    other = DeadLetters(tmp_path, limit=0.5, num_samples=4)
    other.load_state(letters.state())
    other.add([LeftOut(key="c", stage="read", reason="so")], step=12)
    with pytest.raises(DeadLetterLimitError, match=r"3 of 4 pictures"):
        other.settle(accelerator)


def run_here(pictures, folder):
    return run(
        pictures, folder, evaluated=pictures, **{**PROCESS_SETTINGS, "targets": {"kind": "hard"}, "batch_size": 2, "epochs": 1}
    )


@pytest.mark.integration
def test_processes_whose_only_picture_is_left_out_do_as_one_process(spoilt, tmp_path):
    run_here(spoilt, tmp_path / "one")
    start(
        f"""
        from pathlib import Path
        from tests.student_training.test_left_out import run_here

        result = run_here(Path({str(spoilt)!r}), Path({str(tmp_path / "two")!r}))
        assert (result.num_evaluated, result.num_left_out, result.num_left_out_of_evaluation) == (46, 2, 2), result
        """,
        world_size=2,
        warnings="default",  # of single rows, torch warns that strides of gradients are not those of its buckets
    )
    assert listed(tmp_path / "one") == listed(tmp_path / "two") != []
    first, second = (load_file(Path(tmp_path, name, "model.safetensors")) for name in ("one", "two"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)
