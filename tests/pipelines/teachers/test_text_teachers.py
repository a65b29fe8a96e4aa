"""Teachers of texts: what is loaded is what was saved, and what cannot be right is refused by name."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import BertForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from pipelines.teacher_memo import TeacherMemo, TextTeacherFacts, facts_of
from pipelines.teachers import load_any_teacher, load_teacher
from pipelines.teachers.outputs import Wanted, check_layers
from pipelines.text.tokenizers import load_tokenizer
from storage.cache import Cache
from storage.config import ExperimentConfig, TeacherConfig, TrainingConfig
from storage.errors import TeacherError
from storage.text.tokenizer import RECORDED_TOKENIZER
from student_training.text.tokenizers import load_student_tokenizer
from tests.pipelines.text.models import byte_pairs, make_model, save_model, word_piece
from tests.student_training.text.text_trainings import SPECIAL, tokenizer_of

HERE = __name__


def config_of(folder, *, kind="masked_lm", **changes):
    return TeacherConfig(kind=kind, name=str(folder), device="cpu", **changes)


def run(teacher, *texts, **wanted):
    """One padded batch of texts as they are."""
    encoded = [teacher.tokenizer.encode([text]).token_ids for text in texts]
    lengths = np.array([len(ids) for ids in encoded])
    padded = np.zeros((len(texts), lengths.max()), dtype=np.uint32)
    for row, ids in enumerate(encoded):
        padded[row, : len(ids)] = ids
    return teacher.run(padded, lengths=lengths, wanted=Wanted(**wanted))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("bert"), "bert", padding=7)


def test_a_head_padded_beyond_the_vocabulary_is_cut_and_no_class(bert):
    teacher = load_any_teacher(config_of(bert))
    assert (teacher.shape.num_outputs, teacher.spec.num_classes, teacher.vocabulary_size) == (24, 17, 17)
    logits = run(teacher, "ka lo mi", labels=True).token_logits(torch.tensor([0, 0]), torch.tensor([0, 2]))
    assert logits.shape == (2, 17)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_the_head_runs_by_itself_on_chosen_tokens_and_gives_the_same(tmp_path, kind):
    folder = save_model(tmp_path, kind)
    teacher = load_any_teacher(config_of(folder, kind="causal_lm" if kind in ("gpt2", "llama") else "masked_lm"))
    assert teacher.network.splits
    ids = torch.from_numpy(teacher.tokenizer.encode(["ka lo mi nu"]).token_ids.astype(np.int64))[None]
    with torch.inference_mode():
        expected = teacher.network.module(ids).logits[0, [1, 3]]
    outputs = run(teacher, "ka lo mi nu", labels=True)
    found = outputs.token_logits(torch.tensor([0, 0]), torch.tensor([1, 3]))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_weights_are_the_same_whatever_file_they_came_from(bert, tmp_path):
    whole = load_any_teacher(config_of(bert))
    state = whole.network.module.state_dict()
    torch.save(state, tmp_path / "weights.pt")
    unshared = {name: tensor.clone() for name, tensor in state.items()}
    safetensors.torch.save_file(unshared, tmp_path / "weights.safetensors")
    for name in ("weights.pt", "weights.safetensors"):
        other = load_any_teacher(config_of(bert, checkpoint=str(tmp_path / name)))
        assert other.spec == whole.spec


@pytest.mark.parametrize("name", ["bert", "gpt2", "distilbert"])
def test_a_file_that_names_tied_tensors_once_is_whole(tmp_path, name):
    """As `save_pretrained` writes it."""
    folder = save_model(tmp_path, name)
    kind = "causal_lm" if name == "gpt2" else "masked_lm"
    whole = load_any_teacher(config_of(folder, kind=kind))
    file = folder / "model.safetensors"
    assert len(safetensors.torch.load_file(file)) < len(whole.network.module.state_dict())
    assert load_any_teacher(config_of(folder, kind=kind, checkpoint=str(file))).spec == whole.spec
    state = safetensors.torch.load_file(file)
    del state[next(name for name in state if "word_embeddings" in name or "wte" in name)]
    safetensors.torch.save_file(state, tmp_path / "partial.safetensors")
    with pytest.raises(TeacherError, match=r"[12] missing in the checkpoint \(.*(word_embeddings|wte)"):
        load_any_teacher(config_of(folder, kind=kind, checkpoint=str(tmp_path / "partial.safetensors")))


def test_precision_is_part_of_the_identity_and_changes_little(bert):
    exact, rough = load_any_teacher(config_of(bert)), load_any_teacher(config_of(bert, precision="bf16"))
    assert exact.spec.weights_sha256 == rough.spec.weights_sha256
    assert exact.spec != rough.spec
    at = (torch.tensor([0]), torch.tensor([1]))
    of = [run(teacher, "ka lo", labels=True).token_logits(*at) for teacher in (exact, rough)]
    assert of[1].dtype == torch.float32
    assert (of[0].softmax(1) - of[1].softmax(1)).abs().max() < 0.1


def test_positions_of_roberta_begin_behind_its_padding(tmp_path):
    teacher = load_any_teacher(config_of(save_model(tmp_path, "roberta")))
    assert teacher.shape.max_length == 64
    run(teacher, " ".join(["ka"] * 64), labels=True)
    with pytest.raises(TeacherError, match="failed on a batch of 1 sequences of up to 65 tokens"):
        run(teacher, " ".join(["ka"] * 65), labels=True)


def test_facts_are_remembered_without_the_teacher(bert, tmp_path):
    memo, config = TeacherMemo(Cache.at(str(tmp_path / "cache"))), config_of(bert)
    assert memo.find(config) is None
    facts = facts_of(load_any_teacher(config))
    memo.remember(config, facts=facts)
    found = memo.find(config)
    assert isinstance(found, TextTeacherFacts)
    assert found == facts
    assert memo.find(config_of(bert, precision="bf16")) is None
    assert found.head_sha256 is not None


def test_another_tokenizer_is_another_memo(bert, tmp_path):
    other = tmp_path / "tokenizer"
    word_piece().save_pretrained(other)
    memo = TeacherMemo(Cache.at(str(tmp_path / "cache")))
    memo.remember(config_of(bert), facts=facts_of(load_any_teacher(config_of(bert))))
    assert memo.find(config_of(bert, tokenizer=str(other))) is None
    assert load_any_teacher(config_of(bert, tokenizer=str(other))).vocabulary_size == 17


def test_layers_that_do_not_exist_are_named(bert):
    shape = load_any_teacher(config_of(bert)).shape
    check_layers((0, 2), shape=shape, of="hidden_states", name="bert")
    with pytest.raises(TeacherError, match="no layer 3 of hidden_states; it has 0 to 2"):
        check_layers((1, 3), shape=shape, of="hidden_states", name="bert")
    with pytest.raises(TeacherError, match="no layer 0 of attention; it has 1 to 2"):
        check_layers((0,), shape=shape, of="attention", name="bert")


class PlainConfig(PreTrainedConfig):
    model_type = "plain_of_tests"


class Plain(PreTrainedModel):
    """A model of transformers that does its own attention, if any."""

    config_class = PlainConfig
    base_model_prefix = "nothing"

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(17, 17)
        self.post_init()

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask=None, **kwargs):
        logits = self.table(input_ids)
        return MaskedLMOutput(logits=logits, hidden_states=(logits, logits) if kwargs.get("output_hidden_states") else None)


def plain_model(broken=False):
    torch.manual_seed(0)
    model = Plain(PlainConfig())
    if broken:
        torch.nn.init.constant_(model.table.weight, torch.nan)
    return model, {"positions": "masked"}


def no_description():
    return Plain(PlainConfig())


def strange():
    return Plain(PlainConfig()), {"positions": "everywhere"}


def factory(name, bert, **kwargs):
    return TeacherConfig(kind="text_factory", name=f"{HERE}:{name}", tokenizer=str(bert), device="cpu", kwargs=kwargs)


def test_an_architecture_whose_attention_cannot_be_read_is_named(bert):
    teacher = load_any_teacher(factory("plain_model", bert))
    assert teacher.shape.num_layers == 1
    with pytest.raises(TeacherError, match="gives no attention vectors: Plain does not hand its vectors over"):
        check_layers((1,), shape=teacher.shape, of="attention", name="plain")


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("no_description", {}, "returned Plain; it must return"),
        ("strange", {}, "positions 'everywhere' of its description; give one of view, masked, all, next"),
        ("plain_model", {"broken": True}, "logits that are not finite for a short text in fp32"),
        ("plain_model", {"other": 1}, "failed with kwargs"),
        ("plain_modle", {}, "Did you mean 'plain_model'"),
    ],
)
def test_a_factory_that_gives_no_teacher_is_refused(bert, name, kwargs, words):
    with pytest.raises(TeacherError, match=words):
        load_any_teacher(factory(name, bert, **kwargs))


def without_tokenizer(folder):
    for file in folder.glob("*token*"):
        file.unlink()
    return folder


def test_a_tokenizer_that_cannot_be_the_models_is_refused(tmp_path):
    byte_pairs().save_pretrained(tmp_path / "bytes")
    gpt2 = without_tokenizer(save_model(tmp_path / "gpt2", "gpt2"))
    bert = without_tokenizer(save_model(tmp_path / "bert", "bert"))
    with pytest.raises(TeacherError, match="has no mask token"):
        load_any_teacher(config_of(bert, tokenizer=str(tmp_path / "bytes")))
    large = tmp_path / "large"
    tokenizer = word_piece()
    tokenizer.add_tokens([f"word{i}" for i in range(300)])
    tokenizer.save_pretrained(large)
    with pytest.raises(TeacherError, match="has 317 tokens, its embedding 257"):
        load_any_teacher(config_of(gpt2, kind="causal_lm", tokenizer=str(large)))


def two_of_512(root):
    """Two models with tokenizers of 512 tokens, the words of one in reverse."""
    words = [f"w{number}" for number in range(len(SPECIAL), 512)]
    return [
        save_model(root / name, "bert", tokenizer=tokenizer_of([*SPECIAL, *order]))
        for name, order in (("one", words), ("other", words[::-1]))
    ]


def test_two_models_of_512_tokens_refuse_the_tokenizers_of_each_other(tmp_path):
    for one, other in itertools.permutations(two_of_512(tmp_path)):
        sha256, named = (load_tokenizer(str(folder)).facts.sha256[:12] for folder in (one, other))
        with pytest.raises(
            TeacherError,
            match=f"teacher.tokenizer .* has fingerprint {named} and 512 tokens, the tokenizer of .* itself {sha256} and 512: ",
        ):
            load_any_teacher(config_of(one, tokenizer=str(other)))
        assert load_any_teacher(config_of(one, tokenizer=str(one))).spec == load_any_teacher(config_of(one)).spec
    # A vocabulary of its own belongs to a checkpoint, whatever tokenizer the folder of its architecture holds.
    torch.save(make_model("bert", vocabulary=512, seed=1).state_dict(), tmp_path / "weights.pt")
    trained = load_any_teacher(config_of(one, tokenizer=str(other), checkpoint=str(tmp_path / "weights.pt")))
    assert trained.tokenizer.facts.sha256 == load_tokenizer(str(other)).facts.sha256


def transformers_module(folder):
    return BertForMaskedLM.from_pretrained(folder), {"positions": "masked"}


def test_a_model_that_says_which_tokens_it_knows_refuses_others(tmp_path):
    for one, other in itertools.permutations(two_of_512(tmp_path)):
        plain = load_any_teacher(config_of(one))
        described = json.loads((one / "config.json").read_text())
        student = tmp_path / f"student of {one.name}"
        shutil.copytree(one, student)
        written = {**described, RECORDED_TOKENIZER: plain.tokenizer.facts.sha256}
        (without_tokenizer(student) / "config.json").write_text(json.dumps(written))
        assert load_any_teacher(config_of(student, tokenizer=str(one))).spec == plain.spec
        load_any_teacher(factory("transformers_module", one, folder=str(student)))
        words = f"trained on tokens of a tokenizer with fingerprint {plain.tokenizer.facts.sha256[:12]}, and the one of"
        with pytest.raises(TeacherError, match=words):
            load_any_teacher(config_of(student, tokenizer=str(other)))
        with pytest.raises(TeacherError, match=words):
            load_any_teacher(factory("transformers_module", other, folder=str(student)))


def test_model_and_tokenizer_are_of_the_same_revision(tmp_path):
    """A cache of the hub with two revisions, as `huggingface_hub` lays it out."""
    repository = tmp_path / "hub" / "models--tests--bert"
    (repository / "refs").mkdir(parents=True)
    for revision, folder in zip(("main", "second"), two_of_512(tmp_path), strict=True):
        commit = revision.encode().hex().ljust(40, "0")
        (repository / "refs" / revision).write_text(commit)
        shutil.copytree(folder, repository / "snapshots" / commit)
    for revision, folder in (("main", "one"), ("second", "other")):
        kwargs = {"cache_dir": str(tmp_path / "hub"), "revision": revision, "local_files_only": True}
        config = config_of("tests/bert", kwargs=kwargs)
        teacher = load_any_teacher(config)
        assert teacher.tokenizer.facts.sha256 == load_tokenizer(str(tmp_path / folder)).facts.sha256
        asked = {"views": {"kind": "tokens", "length": 8}, "target": {"kind": "embeddings"}}
        experiment = ExperimentConfig(name="x", teacher=config, **asked)
        training = TrainingConfig(output="x", student={"kind": "bilstm"}, targets={"kind": "hard"})
        assert load_student_tokenizer(experiment, training).facts.sha256 == teacher.tokenizer.facts.sha256


def test_a_model_without_its_head_is_refused(tmp_path):
    make_model("bert", vocabulary=17).bert.save_pretrained(tmp_path / "body")
    word_piece().save_pretrained(tmp_path / "body")
    with pytest.raises(TeacherError, match="they would be random"):
        load_any_teacher(config_of(tmp_path / "body"))


def test_a_teacher_of_texts_is_no_teacher_of_pictures(bert):
    with pytest.raises(TeacherError, match="reads texts, and pictures are to be labelled"):
        load_teacher(config_of(bert))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "timm", "name": "vit", "tokenizer": "x"}, "which reads none; leave it out"),
        ({"kind": "text_factory", "name": "a:b"}, "has no tokenizer of its own"),
        ({"kind": "masked_lm", "name": "x", "num_classes": 3}, "whose classes are its tokenizer's tokens"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        TeacherConfig(**fields)


def test_a_causal_teacher_whose_tokens_see_later_ones_is_refused(tmp_path):
    folder = save_model(tmp_path, "bert")
    with pytest.raises(
        TeacherError, match=r"BertLMHeadModel\) is to label next tokens, and its tokens see later ones: .* masked_lm"
    ):
        load_any_teacher(config_of(folder, kind="causal_lm"))
    decoder = load_any_teacher(config_of(folder, kind="causal_lm", kwargs={"is_decoder": True}))
    assert decoder.shape.attention.causal


@pytest.mark.parametrize("padding", [1, 0])
def test_a_classifier_by_its_last_token_never_classifies_padding(tmp_path, padding):
    """Its padding token may be one that the tokenizer does not have; one that the model does not have either is refused."""
    vocabulary = len(byte_pairs())
    folder = save_model(tmp_path, "llama_classifier", padding=padding, pad_token_id=vocabulary if padding else -1)
    config = config_of(folder, kind="sequence_classifier")
    if not padding:
        with pytest.raises(TeacherError, match=r"where a text ends by pad_token_id -1 .* which is no token of it"):
            load_any_teacher(config)
        return
    teacher = load_any_teacher(config)
    alone = run(teacher, "ka lo", labels=True).sequence_logits()
    padded = run(teacher, "ka lo", "ka lo mi nu", labels=True).sequence_logits()
    torch.testing.assert_close(padded[:1], alone, rtol=1e-4, atol=1e-5)


def test_the_embedding_is_of_the_token_that_is_classified(tmp_path):
    """Of a text that ends with the padding token, which such models pass over, it is the one before."""
    teacher = load_any_teacher(config_of(save_model(tmp_path, "llama_classifier"), kind="sequence_classifier"))
    outputs = run(teacher, "ka lo<|endoftext|>", "ka lo mi nu", labels=True, embedding=True)
    assert teacher.tokenizer.encode(["ka lo<|endoftext|>"]).token_ids[-1] == teacher.pad_token_id
    torch.testing.assert_close(teacher.network.module.score(outputs.embedding()), outputs.sequence_logits())


def test_a_model_of_transformers_from_a_factory_has_its_own_limit(bert):
    """Longer views are refused before anything runs, where each long text would be a dead letter and a GPU lost."""
    assert load_any_teacher(factory("transformers_module", bert, folder=str(bert))).shape.max_length == 64
