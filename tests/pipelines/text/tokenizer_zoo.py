"""Tiny real tokenizers of every kind, trained on a few lines."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

LINES = [
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "Unbelievable! To be or not to be: that is the question.",
    "Käse und Brot für 猫 and 🐈 in 1984.",
    "distillation of teachers into students, token by token",
]
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


_TRAINED: dict[str, str] = {}


def _train(tokenizer, trainer):
    """Train once a process: equally frequent pairs merge in an order that differs from training to training."""
    key = f"{tokenizer.to_str()} {trainer!r}"
    if key not in _TRAINED:
        tokenizer.train_from_iterator(LINES, trainer)
        _TRAINED[key] = tokenizer.to_str()
    trained = Tokenizer.from_str(_TRAINED[key])
    tokenizer.model = trained.model
    tokenizer.add_special_tokens([token for _, token in sorted(trained.get_added_tokens_decoder().items())])


def word_piece(*, lowercase=True):
    """BERT's kind: a frame of [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=list(BERT_SPECIAL), show_progress=False)
    _train(tokenizer, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


def byte_pairs():
    """GPT-2's kind: no frame, no mask, an end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    _train(tokenizer, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def roberta():
    """RoBERTa's kind: bytes, framed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(ROBERTA_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    _train(tokenizer, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def llama():
    """Llama's kind: words are not cut apart before they merge, only marked; a sequence begins with <s>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    _train(tokenizer, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byt5(**kwargs):
    """A tokenizer in Python: bytes, and an end of text behind each sequence."""
    return ByT5Tokenizer(extra_ids=5, **kwargs)


def without_frame_of_its_own():
    """A tokenizer whose frame depends on the text."""
    return _Moody(extra_ids=5)


class _Moody(ByT5Tokenizer):
    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [self.pad_token_id] * (len(token_ids_0) % 3) + token_ids_0


FAST = {"word_piece": word_piece, "byte_pairs": byte_pairs, "roberta": roberta, "llama": llama}
ALL = {**FAST, "byt5": byt5}
TEXTS = [*LINES, "", "a", " two  spaces ", "[MASK] <mask> </s> <|endoftext|> [SEP]", "x" * 300, "tab\tand\nline"]
