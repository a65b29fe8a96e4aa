"""Vectors of pictures are those that the network itself gives of the same rendered views."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from pipelines import transforms
from pipelines.audit import audit
from pipelines.describe import describe_plan
from pipelines.estimate import estimate
from pipelines.label import plan_run, plan_runs, run_label, run_labels
from pipelines.plan import make_plan
from storage.cache import Cache
from storage.catalogue import show_label_set
from storage.codecs.values import TargetValues
from storage.errors import ConfigError, MismatchError, TeacherError
from storage.images import decode_image
from storage.label_set import LabelSet
from storage.parts import BlockExtent
from storage.streams.block_reader import BlockReader
from storage.streams.picture_targets import PictureTargetStream
from storage.target_blocks import decode_target_block
from storage.verify import verify
from storage.views import draw_view_params, render
from tests.pipelines.networks import NAN_COLOUR, RAISE_COLOUR
from tests.pipelines.support import (
    TEACHER_KWARGS,
    colour_teacher,
    config_of,
    experiment,
    folder_source,
    save_teacher,
    timm_teacher,
    write_folder,
)

FLOAT16 = {"kind": "float16"}
TARGETS = {
    "hidden": {"kind": "hidden_states", "layers": [0, 1], "codec": FLOAT16},
    "first": {"kind": "hidden_states", "layers": [1], "tokens": "first", "codec": FLOAT16},
    "mean": {"kind": "hidden_states", "layers": [1], "tokens": "mean", "codec": FLOAT16},
    "attention": {"kind": "attention", "layers": [1], "codec": FLOAT16},
    "relations": {"kind": "relations", "layer": 1, "vectors": ["value"], "num_relation_heads": 1},
    "embedding": {"kind": "embeddings"},
    "labels": {"k": 2},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("source") / "pictures", per_class=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def data_of(folder, pictures, teacher, *, targets):
    data = experiment(cache=folder / "cache", source=folder_source(pictures), teacher=teacher, views=2)
    del data["target"]
    return {**data, "targets": targets}


def rows_of(label_set):
    """Every stored row by unit, position and view."""
    table, found = label_set.parts, {}
    for part in range(table.num_rows):
        for extent in table.column("blocks")[part].as_py():
            block = decode_target_block(
                label_set.cache.read_extent(label_set.tar_path(part), BlockExtent(**extent)), origin="test"
            )
            for row, position in enumerate(block.positions.tolist()):
                values: TargetValues = block.values.take(np.arange(block.row_offsets[row], block.row_offsets[row + 1]))
                found[table.column("unit_name")[part].as_py(), position, block.view] = values.tensors
    return found


def inputs_of(run, *, position, view, unit):
    """A rendered view as the network takes it, float32 [1, 3, height, width]."""
    source_unit = next(one.unit for one in run.units if one.unit.name == unit)
    sample = list(run.source.read(source_unit))[position]
    image = decode_image(sample.data, max_pixels=10**6)
    spec = run.plan.request.view
    params = draw_view_params(spec, key=sample.key, view_index=view, width=image.width, height=image.height)
    pixels = torch.from_numpy(render(image, params, interpolation=spec.interpolation).copy()).permute(2, 0, 1)[None].float() / 255
    normalization = run.plan.request.teacher.normalization
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (normalization.mean, normalization.std))
    return (pixels - mean) / std


def close(stored, live):
    live = live.detach().double().numpy()
    assert stored.shape == live.shape
    assert np.abs(stored.astype(np.float64) - live).max() <= 2e-3 * max(1.0, np.abs(live).max())


def test_vectors_of_a_vision_transformer_of_timm(tmp_path, pictures, checkpoint):
    data = data_of(tmp_path, pictures, timm_teacher(checkpoint), targets=TARGETS)
    runs = plan_runs(config_of(data), progress=False)
    assert all(cost.bytes_per_sample > 0 for cost in estimate(runs))
    reports = run_labels(runs, progress=False)
    cache = Cache.at(data["cache"])
    sets = {name: LabelSet.open_id(cache, label_set=report.label_set) for name, report in zip(TARGETS, reports, strict=True)}
    assert [report.num_rows for report in reports] == [18] * len(TARGETS)
    assert all(verify(one).problems == () for one in sets.values())
    module = timm.create_model("test_vit", num_classes=3, checkpoint_path=checkpoint, **TEACHER_KWARGS).eval()
    rows = {name: rows_of(one) for name, one in sets.items() if name != "labels"}
    assert len(rows["hidden"]) == 18
    block, attn = module.blocks[0], module.blocks[0].attn
    for (unit, position, view), stored in rows["hidden"].items():
        inputs = inputs_of(runs[0], position=position, view=view, unit=unit)
        where = (unit, position, view)
        seen = {}
        hook = block.register_forward_hook(lambda _m, given, gave, seen=seen: seen.update(before=given[0], after=gave))
        embedding = module.forward_head(module.forward_features(inputs), pre_logits=True)
        hook.remove()
        close(stored["hidden.0"], seen["before"][0])
        close(stored["hidden.1"], seen["after"][0])
        close(rows["first"][where]["hidden.1"], seen["after"][0, :1])
        close(rows["mean"][where]["hidden.1"], seen["after"][0].mean(dim=0, keepdim=True))
        close(rows["embedding"][where]["embedding"], embedding)
        query, key, value = attn.qkv(block.norm1(seen["before"]))[0].chunk(3, dim=1)
        for name, expected in (("query", query), ("key", key), ("value", value)):
            close(rows["attention"][where][f"{name}.1"], expected)
        pairs = torch.stack([value[i] @ value[j] / len(value[0]) ** 0.5 for i in range(len(value)) for j in range(i + 1)])
        close(rows["relations"][where]["value_relations.1"], pairs[:, None])
    again = plan_runs(config_of(data), progress=False)
    assert not any(run.plan.tasks for run in again)


def tars_of(report, cache):
    label_set = LabelSet.open_id(cache, label_set=report.label_set)
    return {label_set.tar_path(part): cache.store.read(label_set.tar_path(part)) for part in range(label_set.parts.num_rows)}


@pytest.fixture
def passes():
    """Count the forward passes of a timm vision transformer that is loaded already."""
    counted, hooks = [], []

    def count(config):
        module = transforms.shared_teacher(config.teacher).vector_network.module
        hooks.append(module.patch_embed.register_forward_pre_hook(lambda _, given: counted.append(len(given[0]))))
        return counted

    yield count
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("names", [tuple(TARGETS), ("labels", "embedding"), ("hidden", "relations"), ("labels", "more")])
def test_several_targets_take_one_pass_and_have_the_bytes_of_a_pass_each(tmp_path, checkpoint, passes, names):
    # Two units, one of more than a batch; a picture that cannot be read keeps its place in each.
    pictures = write_folder(tmp_path / "pictures", per_class=5)
    (pictures / "red" / "002.png").write_bytes(b"no picture")
    targets = {name: {**TARGETS, "more": {"k": 3, "codec": {"kind": "exact"}}}[name] for name in names}
    data = data_of(tmp_path / "all", pictures, timm_teacher(checkpoint), targets=targets)
    data = {**data, "source": folder_source(pictures, unit_size=10), "generation": {**data["generation"], "batch_size": 8}}
    data["generation"]["dead_letter_limit"] = 0.5
    config = config_of(data)
    runs = plan_runs(config, progress=False)
    counted = passes(config)
    reports = run_labels(runs, progress=False)
    together = len(counted)
    # Units of 10 and 5 pictures are 3 batches, of 2 views; how many tokens a picture has shows once.
    assert together == 3 * 2 + any(name not in ("labels", "more") for name in names)
    assert [report.num_computed_rows for report in reports] == [30] * len(names)
    assert {report.num_dead_letters for report in reports} == {1}
    for name, report in zip(names, reports, strict=True):
        alone = config_of({**data, "cache": str(tmp_path / name), "targets": {name: targets[name]}})
        (one,) = run_labels(plan_runs(alone, progress=False), progress=False)
        found = tars_of(report, Cache.at(config.cache))
        assert len(found) == 2
        assert found == tars_of(one, Cache.at(alone.cache))
    assert len(counted) - together >= 3 * 2 * len(names)


def test_pictures_at_which_a_teacher_fails_cost_their_own_rows_in_every_target(tmp_path):
    pictures = write_folder(tmp_path / "pictures", per_class=3)
    for name, colour in (("red", RAISE_COLOUR), ("green", NAN_COLOUR)):
        Image.new("RGB", (24, 24), colour).save(pictures / name / "001.png")
    targets = {"labels": {"k": 2}, "more": {"k": 3, "codec": {"kind": "exact"}}}
    data = data_of(tmp_path / "all", pictures, colour_teacher(), targets=targets)
    data["generation"]["dead_letter_limit"] = 0.5
    reports = run_labels(plan_runs(config_of(data), progress=False), progress=False)
    assert [report.num_dead_letters for report in reports] == [4, 4]
    for name, report in zip(targets, reports, strict=True):
        alone = config_of({**data, "cache": str(tmp_path / name), "targets": {name: targets[name]}})
        (one,) = run_labels(plan_runs(alone, progress=False), progress=False)
        assert tars_of(one, Cache.at(alone.cache)) == tars_of(report, Cache.at(data["cache"]))
        records = [Cache.at(url).find_part(used.part) for url in (alone.cache, data["cache"]) for used in planned_parts(alone)]
        assert records[: len(records) // 2] == records[len(records) // 2 :]


def planned_parts(config):
    (run,) = plan_runs(config, progress=False)
    return run.plan.parts


def test_what_one_of_several_targets_lacks_is_computed_alone(tmp_path, pictures, checkpoint):
    targets = {"labels": TARGETS["labels"], "first": TARGETS["first"]}
    data = data_of(tmp_path, pictures, timm_teacher(checkpoint), targets=targets)
    reports = run_labels(plan_runs(config_of(data), progress=False), progress=False)
    before = [tars_of(report, Cache.at(data["cache"])) for report in reports]
    path = tmp_path / "cache" / sorted(before[1])[0]
    path.unlink()
    runs = plan_runs(config_of(data), progress=False)
    assert [len(run.plan.tasks) for run in runs] == [0, 1]
    run_labels(runs, progress=False)
    assert [tars_of(report, Cache.at(data["cache"])) for report in reports] == before


def test_sums_that_were_once_stored_for_means_are_refused_and_computed_anew(tmp_path, pictures, checkpoint):
    config = config_of(data_of(tmp_path, pictures, timm_teacher(checkpoint), targets={"mean": TARGETS["mean"]}))
    (run,) = plan_runs(config, progress=False)
    # As the release before asked for them, whose rows were sums.
    target = run.plan.request.target.model_copy(update={"mean_version": None})
    older = run.plan.request.model_copy(update={"target": target})
    plan = make_plan(run.cache, request=older, units=run.units, num_views=2, views_per_part=2)
    (report,) = run_labels([replace(run, plan=plan)], progress=False)
    held = LabelSet.open_id(run.cache, label_set=report.label_set)
    saying = rf"label set 'tiny.mean' \({report.label_set}\) holds the sum over tokens .*; run decant label again"
    with pytest.raises(MismatchError, match=saying):
        BlockReader(held)
    with pytest.raises(MismatchError, match=saying):
        audit(config, num_rows=1, progress=False)
    assert "wrong          holds the sum over tokens" in show_label_set(run.cache.store.url, name="tiny.mean")["text"]
    (again,) = plan_runs(config, progress=False)
    assert (again.plan.num_missing_rows, again.plan.num_lent_rows) == (18, 0)
    assert again.plan.not_lending == {older.fingerprint(): "target.mean_version is None, not 2"}
    run_labels([again], progress=False)
    right = LabelSet.open(run.cache, name_or_id="tiny.mean")
    assert len(BlockReader(right).block(view=0, block_id=0)) > 0
    assert audit(config, num_rows=6, progress=False)["num_failing_rows"] == 0


def test_float16_serves_requests_for_int8_as_it_lies(tmp_path, pictures, checkpoint):
    teacher = timm_teacher(checkpoint)
    run_labels(plan_runs(config_of(data_of(tmp_path, pictures, teacher, targets={"hidden": TARGETS["hidden"]})), progress=False))
    transforms._teachers.clear()
    coarse = {"kind": "hidden_states", "layers": [1], "codec": {"kind": "int8"}}
    config = config_of({**data_of(tmp_path, pictures, teacher, targets={"coarse": coarse}), "name": "other"})
    (run,) = plan_runs(config, progress=False)
    assert (run.plan.num_lent_rows, run.plan.num_missing_rows, run.teacher_loaded) == (18, 0, False)
    told = describe_plan(run)["text"]
    assert re.search(r"reused +18 +\d+ +from wider or finer labels of them: hidden states of layers 0, 1", told), told
    (report,) = run_labels([run], progress=False)
    assert (report.num_rows, report.num_computed_rows) == (18, 0)
    assert not transforms._teachers
    fine, served = (LabelSet.open(run.cache, name_or_id=name) for name in ("tiny.hidden", "other.coarse"))
    assert verify(served).problems == ()
    streams = [PictureTargetStream({"hidden": one}, source=run.source) for one in (fine, served)]
    block_rows = streams[0].block_rows(epoch=0)
    assert streams[1].block_rows(epoch=0).tolist() == block_rows.tolist()
    asked = {"block_ids": np.repeat(np.arange(len(block_rows)), block_rows), "epoch": 0}
    within = np.concatenate([np.arange(size) for size in block_rows])
    stored, found = (stream.read(**asked, rows=within).targets["hidden"].values.tensors for stream in streams)
    assert list(found) == ["hidden.1"]
    assert np.array_equal(found["hidden.1"], stored["hidden.1"])


def test_vectors_of_a_vision_transformer_of_transformers(tmp_path, pictures):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )
    module = ViTForImageClassification(config).eval()
    module.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    teacher = {"kind": "transformers", "name": str(tmp_path / "vit"), "device": "cpu"}
    targets = {name: TARGETS[name] for name in ("hidden", "attention", "embedding", "labels")}
    targets["hidden"] = {**targets["hidden"], "layers": [0, 2]}
    data = data_of(tmp_path, pictures, teacher, targets=targets)
    runs = plan_runs(config_of(data), progress=False)
    reports = run_labels(runs, progress=False)
    cache = Cache.at(data["cache"])
    rows = {
        name: rows_of(LabelSet.open_id(cache, label_set=report.label_set))
        for name, report in zip(targets, reports, strict=True)
        if name != "labels"
    }
    alone = config_of({**data, "cache": str(tmp_path / "alone"), "targets": {"labels": targets["labels"]}})
    (labels,) = run_labels(plan_runs(alone, progress=False), progress=False)
    assert tars_of(labels, Cache.at(alone.cache)) == tars_of(reports[-1], cache)
    for where, stored in list(rows["hidden"].items())[:6]:
        inputs = inputs_of(runs[0], unit=where[0], position=where[1], view=where[2])
        with torch.inference_mode():
            outputs = module(inputs, output_hidden_states=True)
        close(stored["hidden.0"], outputs.hidden_states[0][0])
        close(stored["hidden.2"], outputs.hidden_states[2][0])
        logits = module.classifier(torch.from_numpy(rows["embedding"][where]["embedding"].astype(np.float32)))
        close(logits.detach().numpy(), outputs.logits)
        assert rows["attention"][where]["query.1"].shape == (5, 16)


def test_what_a_network_does_not_have_is_refused(tmp_path, pictures, checkpoint):
    def plan(teacher, target):
        return plan_run(
            config_of(
                {**experiment(cache=tmp_path / "cache", source=folder_source(pictures), teacher=teacher), "target": target}
            ),
            progress=False,
        )

    hidden = {"kind": "hidden_states", "layers": [1]}
    with pytest.raises(TeacherError, match="gives logits only"):
        plan(colour_teacher(), hidden)
    with pytest.raises(TeacherError, match="has no layer 2 of hidden_states; it has 0 to 1"):
        plan(timm_teacher(checkpoint), {**hidden, "layers": [2]})
    with pytest.raises(ConfigError, match="cannot be stored"):
        plan(timm_teacher(checkpoint), {**hidden, "head": True})
    network = {"kind": "timm", "name": "test_resnet", "device": "cpu", "num_classes": 3}
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.save(state, tmp_path / "resnet.pt")
    convolutional = {**network, "checkpoint": str(tmp_path / "resnet.pt")}
    with pytest.raises(TeacherError, match="has no layers that keep its tokens"):
        plan(convolutional, hidden)
    with pytest.raises(TeacherError, match="does not hand its vectors over"):
        plan(convolutional, {"kind": "attention", "layers": [1]})
    assert run_label(plan(convolutional, {"kind": "embeddings"}), progress=False).num_rows == 18


@pytest.mark.parametrize("codec", [{"kind": "sampled", "draws": 20}, {"kind": "threshold", "levels": 8}, {"kind": "dense"}])
def test_every_codec_labels_pictures(tmp_path, pictures, checkpoint, codec):
    data = experiment(cache=tmp_path / "cache", source=folder_source(pictures), teacher=timm_teacher(checkpoint))
    report = run_label(plan_run(config_of({**data, "target": {"codec": codec}}), progress=False), progress=False)
    assert report.num_rows == 18
    assert verify(LabelSet.open_id(Cache.at(data["cache"]), label_set=report.label_set)).problems == ()


def test_pictures_of_more_tokens_than_a_block_holds_are_refused_for_every_unit(tmp_path, pictures, checkpoint, monkeypatch):
    target = {"kind": "relations", "layer": 1}
    data = {
        **experiment(cache=tmp_path / "cache", source=folder_source(pictures), teacher=timm_teacher(checkpoint)),
        "target": target,
    }
    run = plan_run(config_of(data), progress=False)
    monkeypatch.setattr("storage.block_limits.MAX_STREAM_BYTES", 100)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"^target\.kind: relations of pictures of 5 tokens: .* give smaller views"):
            estimate([run])
