"""The trainer from end to end, on real pictures and a tiny network."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from storage.errors import ConfigError, CorruptError, MismatchError
from storage.views import view_digest
from student_training.meters import DivergenceError
from student_training.metrics import read_metrics
from student_training.trainer import train
from tests.student_training.support import VIEW, TeachingStream, make_config, source_stream, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def test_cached_targets_teach_the_student(pictures, tmp_path):
    config = make_config(
        pictures,
        tmp_path,
        evaluation=True,
        targets={"kind": "cached"},
        epochs=6,
        loss={"rest": "uniform", "hard_weight": 0.2},
        optimizer={"learning_rate": 3e-3},
        schedule={"name": "cosine", "warmup_epochs": 0.5},
        clip_grad_norm=1.0,
    )
    result = train(config, stream=TeachingStream(source_stream(pictures)), view=VIEW, num_classes=3)
    assert result.steps == 36
    assert result.top1 > 0.9
    assert result.top5 == 1.0
    assert result.num_evaluated == 48
    assert result.teacher_passes == 0
    assert result.images_per_second > 0
    lines = read_metrics(tmp_path / "metrics.jsonl")
    training = [line for line in lines if line["kind"] == "training"]
    assert [line["step"] for line in training] == list(range(1, 37))
    assert training[-1]["loss"] < training[0]["loss"]
    assert {"distillation_loss", "hard_loss", "learning_rate", "images_per_second"} <= training[0].keys()
    assert [line["epoch"] for line in lines if line["kind"] == "evaluation"] == [1, 2, 3, 4, 5, 6]
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_student_loads_with_plain_timm(pictures, tmp_path, ema_decay):
    config = make_config(pictures, tmp_path, evaluation=True, ema_decay=ema_decay, epochs=1)
    result = train(config, stream=source_stream(pictures), view=VIEW, num_classes=3)
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["weights"] == result.weights == ("trained" if ema_decay is None else "ema")
    model = timm.create_model(
        description["architecture"],
        num_classes=description["num_classes"],
        checkpoint_path=tmp_path / "model.safetensors",
        **description["model_args"],
    )
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    whole = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole.state_dict().items())
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=whole))
    hits = 0
    for label, folder in enumerate(sorted(pictures.iterdir())):
        for path in sorted(folder.iterdir()):
            with torch.no_grad():
                hits += int(model.eval()(transform(Image.open(path).convert("RGB"))[None]).argmax()) == label
    assert hits / 48 == pytest.approx(result.top1, abs=1 / 48)


def test_live_teacher_is_given_its_views_and_the_student_its_own_size(pictures, tmp_path):
    seen = []

    def teacher(views):
        seen.append(views)
        return torch.tensor(views.reshape(len(views), -1, 3).mean(axis=1)[:, ::-1] / 16.0, dtype=torch.float32)

    student = {"name": "test_vit", "kwargs": {"img_size": 8, "patch_size": 4, "depth": 1}}
    config = make_config(pictures, tmp_path, targets={"kind": "live"}, student=student, preprocessing={"size": [8, 8]}, epochs=1)
    result = train(config, stream=source_stream(pictures, num_views=1), view=VIEW, num_classes=3, teacher=teacher)
    assert result.teacher_passes == 48
    assert {views.shape for views in seen} == {(8, 16, 16, 3)}
    assert seen[0].dtype == np.uint8
    assert result.loss > 0


def test_live_teacher_with_every_class_equals_cached(pictures, tmp_path):
    """The same distributions from a teacher and from the cache give the same weights."""
    rows = np.array([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.2, 0.1, 0.7]])
    stream = TeachingStream(source_stream(pictures), num_views=1)
    by_view = {}
    for block, count in enumerate(stream.block_rows(epoch=0)):
        found = stream.read(epoch=0, block_ids=np.full(count, block), rows=np.arange(count))
        by_view.update(zip(found.view_digests.tolist(), found.labels.tolist(), strict=True))

    def teacher(views):
        return torch.tensor(np.log(rows[[by_view[view_digest(view)] for view in views]]), dtype=torch.float32)

    options = {"epochs": 1, "optimizer": {"name": "sgd", "learning_rate": 0.01}}
    cached = make_config(pictures, tmp_path / "cached", targets={"kind": "cached"}, **options)
    live = make_config(pictures, tmp_path / "live", targets={"kind": "live"}, **options)
    train(cached, stream=stream, view=VIEW, num_classes=3)
    train(live, stream=source_stream(pictures, num_views=1), view=VIEW, num_classes=3, teacher=teacher)
    one, other = (load_file(tmp_path / kind / "model.safetensors") for kind in ("cached", "live"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_a_finished_run_is_not_run_again(pictures, tmp_path):
    config = make_config(pictures, tmp_path, epochs=1)
    first = train(config, stream=source_stream(pictures), view=VIEW, num_classes=3)
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    again = train(config, stream=source_stream(pictures), view=VIEW, num_classes=3)
    assert again.already_finished
    assert not first.already_finished
    assert (again.steps, again.loss) == (first.steps, first.loss)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written
    anew = train(config, stream=source_stream(pictures), view=VIEW, num_classes=3, resume=False)
    assert not anew.already_finished
    assert anew.loss == first.loss


def test_another_run_in_the_same_folder_is_refused_by_field(pictures, tmp_path):
    train(make_config(pictures, tmp_path, epochs=1), stream=source_stream(pictures), view=VIEW, num_classes=3)
    changed = make_config(pictures, tmp_path, epochs=1, optimizer={"learning_rate": 0.5})
    with pytest.raises(MismatchError, match=r"training\.optimizer\.learning_rate: 0\.001 there, 0\.5 asked for"):
        train(changed, stream=source_stream(pictures), view=VIEW, num_classes=3)
    with pytest.raises(MismatchError, match="stream: other samples, labels or order of rows"):
        train(make_config(pictures, tmp_path, epochs=1), stream=source_stream(pictures, block_rows=5), view=VIEW, num_classes=3)
    with pytest.raises(MismatchError, match="evaluated with None"):
        train(
            make_config(pictures, tmp_path, epochs=1, evaluation=True), stream=source_stream(pictures), view=VIEW, num_classes=3
        )
    moved = make_config(pictures, tmp_path, epochs=1, loader_workers=1, log_every_steps=7)
    assert train(moved, stream=source_stream(pictures), view=VIEW, num_classes=3).already_finished


def test_a_lost_result_is_made_again_from_the_last_checkpoint(pictures, tmp_path):
    stream = source_stream(pictures)
    first = train(make_config(pictures, tmp_path, epochs=1), stream=stream, view=VIEW, num_classes=3)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    evaluated = train(make_config(pictures, tmp_path, epochs=1, evaluation=True), stream=stream, view=VIEW, num_classes=3)
    assert (evaluated.resumed_from_step, evaluated.steps, evaluated.loss) == (6, 6, first.loss)
    assert (first.top1, evaluated.num_evaluated) == (None, 48)
    assert evaluated.images_per_second > 0
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(CorruptError, match=r"result.json is damaged.*delete it"):
        train(make_config(pictures, tmp_path, epochs=1), stream=stream, view=VIEW, num_classes=3)


def test_a_loss_that_is_not_a_number_stops_before_anything_is_written(pictures, tmp_path):
    class Poison(TeachingStream):
        def soft_labels(self, labels):
            made = super().soft_labels(labels)
            made.probs[:] = np.nan
            return made

    config = make_config(pictures, tmp_path, targets={"kind": "cached"}, epochs=1)
    with pytest.raises(Exception, match=r"the loss of step 1 is nan, on the samples '") as caught:
        train(config, stream=Poison(source_stream(pictures)), view=VIEW, num_classes=3)
    assert type(caught.value).__name__ == "DivergenceError"
    assert "learning_rate" in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "model.safetensors").exists()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_weights_that_are_not_numbers_are_not_written(pictures, tmp_path):
    """The last update may spoil them without any loss that shows it."""
    config = make_config(
        pictures,
        tmp_path,
        epochs=1,
        batch_size=24,
        checkpoint_every_steps=1,
        optimizer={"name": "sgd", "learning_rate": 3e38, "weight_decay": 1e4},
        schedule={"name": "linear", "warmup_epochs": 0.5, "warmup_learning_rate": 1e-3},
    )
    with pytest.raises(DivergenceError, match=r"weights are not finite after step 2, .*checkpoint before is the newest. Lower"):
        train(config, stream=source_stream(pictures), view=VIEW, num_classes=3)
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.pt")] == ["step-00000001.pt"]
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, r"batch_size is 64 but epoch 0 has 48 rows.*lower batch_size to 48"),
        ({"device": "cuda"}, "finds no GPU"),
        ({"precision": "fp16"}, "CPUs do not train in"),
        ({"output": "s3://bucket/run"}, "local folder"),
        ({"student": {"name": "test_vitt"}}, "Did you mean 'test_vit'"),
        (
            {"student": {"name": "resnet18.bogus"}},
            r"student.name: timm .* has no weights 'bogus' of resnet18\..*Or leave out .bogus",
        ),
        (
            {"student": {"name": "test_vit", "kwargs": {"dynamic_img_size": False}}},
            r"cannot take pictures of 16 x 16 .*default is 160 x 160",
        ),
        ({"optimizer": {"name": "adamww"}}, "Did you mean 'adamw'"),
        ({"schedule": {"warmup_epochs": 2}}, "12 updates but training has 12"),
        ({"targets": {"kind": "live"}}, "no teacher was given"),
        ({"targets": {"kind": "cached"}, "loss": {"rest": "mean"}}, "no mean class probabilities"),
        ({"targets": {"kind": "cached"}, "student": {"name": "test_vit", "num_classes": 5}}, "leave num_classes out"),
    ],
)
def test_what_cannot_run_is_said_before_any_update(pictures, tmp_path, changes, message):
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=message):
        train(make_config(pictures, tmp_path, **changes), stream=source_stream(pictures), view=VIEW, num_classes=3)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_cached_targets_need_soft_labels(pictures, tmp_path):
    config = make_config(pictures, tmp_path, targets={"kind": "cached"})
    with pytest.raises(MismatchError, match="hold no soft labels"):
        train(config, stream=source_stream(pictures), view=VIEW, num_classes=3)


def test_bf16_trains_on_the_cpu(pictures, tmp_path):
    config = make_config(pictures, tmp_path, precision="bf16", epochs=1, evaluation=True)
    result = train(config, stream=source_stream(pictures), view=VIEW, num_classes=3)
    assert np.isfinite(result.loss)
    assert load_file(tmp_path / "model.safetensors")["head.weight"].dtype == torch.float32
