"""Streams of texts: every row is the one that was written, alone and joined."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import codecs
from storage.errors import CorruptError, MismatchError
from storage.order import EpochOrder
from storage.specs import AttentionSpec, EmbeddingsSpec, Float16Codec, RelationsSpec, SoftLabelsSpec
from storage.streams.label_tars import ReadsLabelSets
from storage.streams.text_stream import TextLabelStream
from tests.storage.caches import make_labeller
from tests.storage.text_caches import (
    CLASS_LABELS,
    HIDDEN,
    MASKED,
    MASKED_LABELS,
    NEXT_LABELS,
    PLAIN,
    VOCABULARY,
    draw_documents,
    make_text_labeller,
    make_text_request,
    random_values,
    tokens_of,
)

DOCUMENTS = draw_documents()
BY_KEY = {document.key: document for document in DOCUMENTS}
ALL_LABELS = SoftLabelsSpec(**{**dict(MASKED_LABELS), "positions": "all"})
QUERIES = AttentionSpec(
    layers=(1, 3), vectors=("query", "key"), num_heads=2, num_key_value_heads=2, head_width=3, causal=False, codec=Float16Codec()
)
RELATIONS = RelationsSpec(layer=2, vectors=("value",), num_relation_heads=3, codec=Float16Codec())
POOLED = EmbeddingsSpec(width=5, codec=Float16Codec())


def read_all(stream, *, epoch=0):
    sizes = stream.block_rows(epoch=epoch)
    block_ids = np.repeat(np.arange(len(sizes)), sizes)
    return stream.read(epoch=epoch, block_ids=block_ids, rows=np.concatenate([np.arange(size) for size in sizes]))


def expected(target, *, key, view, num_rows):
    """What a reader must get of a sequence's rows."""
    values = random_values(target, key=key, view=view, num_rows=num_rows)
    if isinstance(target, SoftLabelsSpec):
        return codecs.decode(codecs.encode(values, spec=target), num_rows=num_rows, spec=target).densify()
    return {name: tensor.astype(np.float16) for name, tensor in values.tensors.items()}


def check(rows, *, view_spec, view, targets):
    """Fail unless every row holds its own tokens, masks, label and values."""
    for index, key in enumerate(rows.keys):
        document = BY_KEY[key]
        own = rows.tokens.take(np.array([index]))
        seen = tokens_of([document], view=view_spec, view_index=view)
        assert own.token_ids.tolist() == list(document.tokens)
        assert own.inputs().tolist() == seen.inputs().tolist()
        assert rows.labels[index] == document.label
        for name, target in targets.items():
            found = rows.targets[name].take(np.array([index]))
            wanted = expected(target, key=key, view=view, num_rows=int(found.counts[0]))
            if isinstance(target, SoftLabelsSpec):
                np.testing.assert_array_equal(found.values.densify(), wanted)
            else:
                assert {name: tensor.tolist() for name, tensor in found.values.tensors.items()} == {
                    name: tensor.tolist() for name, tensor in wanted.items()
                }


def label(folder, *, target, view=MASKED, num_views=2, name="texts", **options):
    labeller = make_text_labeller(folder, documents=DOCUMENTS, request=make_text_request(target=target, view=view), **options)
    return labeller.label(name=name, num_views=num_views)


@pytest.mark.parametrize("target", [MASKED_LABELS, ALL_LABELS, NEXT_LABELS, CLASS_LABELS, HIDDEN, QUERIES, RELATIONS, POOLED])
@pytest.mark.parametrize("view", [MASKED, PLAIN])
def test_rows_are_those_that_were_written(tmp_path, target, view):
    if target == MASKED_LABELS and view == PLAIN:
        pytest.skip("nothing is masked")
    dead = frozenset({("doc004", 0), ("doc020", 1), ("doc021", 1), ("doc022", 1), ("doc018", 1), ("doc019", 1)})
    stream = TextLabelStream({"only": label(tmp_path, target=target, view=view, dead=dead)})
    for epoch in range(3):
        rows = read_all(stream, epoch=epoch)
        assert rows.keys == [document.key for document in DOCUMENTS if (document.key, epoch % 2) not in dead]
        check(rows, view_spec=view, view=epoch % 2, targets={"only": target})
    assert (rows.labels.dtype, stream.view) == (np.int64, view)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Label sets of labels and hidden states; different samples are dead in each, some in both."""
    folder = tmp_path_factory.mktemp("joined")
    labels_dead = frozenset({("doc001", 0), ("doc002", 0), ("doc013", 1)})
    hidden_dead = frozenset({("doc002", 0), ("doc003", 0), ("doc029", 0)})
    return {
        "labels": label(folder, target=MASKED_LABELS, dead=labels_dead),
        "hidden": label(folder, target=HIDDEN, dead=hidden_dead, name="hidden"),
    }, labels_dead | hidden_dead


def test_label_sets_of_the_same_samples_are_joined(joined):
    label_sets, dead = joined
    stream = TextLabelStream(label_sets)
    for view in range(2):
        rows = read_all(stream, epoch=view)
        assert rows.keys == [document.key for document in DOCUMENTS if (document.key, view) not in dead]
        check(rows, view_spec=MASKED, view=view, targets={"labels": MASKED_LABELS, "hidden": HIDDEN})
    assert stream.targets == {"labels": MASKED_LABELS, "hidden": HIDDEN}


def test_tokens_alone_can_be_read(joined):
    label_sets, dead = joined
    rows = read_all(TextLabelStream({"labels": label_sets["labels"]}, targets={}))
    assert rows.targets == {}
    assert len(rows.keys) == len(DOCUMENTS) - sum(view == 0 and key in ("doc001", "doc002") for key, view in dead)
    check(rows, view_spec=MASKED, view=0, targets={})


def test_rows_are_narrowed(joined):
    fewer_layers = HIDDEN.model_copy(update={"layers": (2,)})
    fewer_classes = MASKED_LABELS.model_copy(update={"k": 2})
    whole = TextLabelStream(joined[0])
    stream = TextLabelStream(joined[0], targets={"labels": fewer_classes, "hidden": fewer_layers})
    rows, wide = read_all(stream), read_all(whole)
    assert list(rows.targets["hidden"].values.tensors) == ["hidden.2"]
    np.testing.assert_array_equal(
        rows.targets["hidden"].values.tensors["hidden.2"], wide.targets["hidden"].values.tensors["hidden.2"]
    )
    assert rows.targets["labels"].values.probs.shape[1] == 2
    assert rows.targets["labels"].target == fewer_classes
    assert stream.identity() != whole.identity()
    assert isinstance(stream, ReadsLabelSets)
    assert stream.label_tars().keys() == {label_set.manifest.id for label_set in joined[0].values()}
    with pytest.raises(MismatchError, match="cannot serve this target: target.layers lacks 3"):
        TextLabelStream(joined[0], targets={"hidden": HIDDEN.model_copy(update={"layers": (1, 3)})})


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3), st.integers(0, 2**32), st.integers(0, 4), st.lists(st.integers(0, 25), max_size=4))
def test_shuffled_slices_are_the_rows_asked_for(joined, epoch, seed, window_blocks, cuts):
    label_sets, dead = joined
    stream = TextLabelStream(label_sets, held_blocks=max(window_blocks, 1) + 1)
    order = EpochOrder(stream.block_rows(epoch=epoch), seed=seed, epoch=epoch, window_blocks=window_blocks)
    keys = []
    for start, stop in pairwise([0, *sorted(min(cut, order.num_rows) for cut in cuts), order.num_rows]):
        if start == stop:
            continue
        block_ids, rows = order.slice(start, stop)
        found = stream.read(epoch=epoch, block_ids=block_ids, rows=rows)
        keys += found.keys
        check(found, view_spec=MASKED, view=epoch % 2, targets={"labels": MASKED_LABELS, "hidden": HIDDEN})
    assert sorted(keys) == [document.key for document in DOCUMENTS if (document.key, epoch % 2) not in dead]


def test_a_copy_in_another_process_reads_the_same(joined):
    stream = TextLabelStream(joined[0])
    before = read_all(stream)
    copy = pickle.loads(pickle.dumps(stream))
    assert (copy.identity(), read_all(copy).keys) == (stream.identity(), before.keys)
    assert len(pickle.dumps(stream)) < 100_000  # no rows travel


def test_label_sets_of_other_views_are_refused_by_field(joined, tmp_path):
    other = label(tmp_path, target=HIDDEN, view=MASKED.model_copy(update={"seed": 6}))
    with pytest.raises(MismatchError, match=r"view\.seed: 5 in labels .label set 'texts'., 6 in hidden"):
        TextLabelStream({"labels": joined[0]["labels"], "hidden": other})
    fewer = label(tmp_path / "fewer", target=HIDDEN, num_views=1)
    with pytest.raises(MismatchError, match=r"view\.count: 2 in labels .*, 1 in hidden"):
        TextLabelStream({"labels": joined[0]["labels"], "hidden": fewer})


def test_label_sets_of_other_samples_are_refused_with_both_units(joined, tmp_path):
    changed = (*DOCUMENTS[:12], replace(DOCUMENTS[12], tokens=(7, 8, 9)), *DOCUMENTS[13:])
    labeller = make_text_labeller(tmp_path, documents=changed, request=make_text_request(target=HIDDEN))
    with pytest.raises(MismatchError) as caught:
        TextLabelStream({"labels": joined[0]["labels"], "hidden": labeller.label(num_views=2)})
    assert "not of the same samples: block 3 of view 0 is samples 0 to 3 of unit 'unit1' (content " in str(caught.value)
    assert "Run decant label for both targets over the same source" in str(caught.value)
    fewer = make_text_labeller(tmp_path, documents=DOCUMENTS[:18], request=make_text_request(target=HIDDEN))
    with pytest.raises(MismatchError, match="block 6 of view 0 is samples 0 to 3 of unit 'unit2' .* in the one, not there in"):
        TextLabelStream({"labels": joined[0]["labels"], "hidden": fewer.label(num_views=2)})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tokens": (7, 8, 9)}, "token ids"),
        ({"key": "other"}, "sample keys"),
    ],
)
def test_a_label_set_that_lies_about_its_samples_is_refused_when_read(joined, tmp_path, change, field, monkeypatch):
    """Two runs with unlike tokenizers, say, whose units have the same content."""
    changed = (*DOCUMENTS[:12], replace(DOCUMENTS[12], **change), *DOCUMENTS[13:])
    labeller = make_text_labeller(tmp_path, documents=changed, request=make_text_request(target=HIDDEN))
    digests = joined[0]["labels"].parts.column("unit_digest").to_pylist()
    monkeypatch.setattr(type(labeller), "unit_digest", lambda self, index: digests[index])
    stream = TextLabelStream({"labels": joined[0]["labels"], "hidden": labeller.label(num_views=2)})
    with pytest.raises(
        MismatchError, match=f"unit 'unit1': {field} of samples 0 to 3 differ between targets 'labels' and 'hidden'"
    ):
        read_all(stream)


def test_pictures_are_refused(joined, tmp_path):
    pictures = make_labeller(tmp_path).label()
    with pytest.raises(MismatchError, match="are of pictures"):
        TextLabelStream({"labels": pictures})


@pytest.mark.parametrize("damage", ["flipped", "short"])
def test_damage_names_the_part_and_the_remedy(tmp_path, damage):
    label_set = label(tmp_path, target=CLASS_LABELS, view=PLAIN, num_views=1)
    path = tmp_path / "cache" / label_set.tar_path(1)
    block = label_set.parts.column("blocks")[1].as_py()[0]
    data = bytearray(path.read_bytes())
    data[block["offset"] + 40] ^= 4
    path.write_bytes(data if damage == "flipped" else data[: block["offset"] + 9])
    stream = TextLabelStream({"only": label_set})
    assert stream.read(epoch=0, block_ids=np.array([0]), rows=np.array([1])).keys == ["doc001"]
    with pytest.raises(CorruptError, match=f"{path}.*run decant repair CONFIG"):
        read_all(stream)


def test_vocabulary_is_that_of_the_view(joined):
    assert TextLabelStream(joined[0]).view.vocabulary_size == VOCABULARY
