"""Tiny real language models with tokenizers of their own, saved as transformers saves them."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe", "ra", "so", "tu") for b in ("", "ba", "di", "fo", "gu")]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def sentence(seed: int, *, num_words: int) -> str:
    """A text of so many words."""
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


def documents(num: int, *, longest: int = 20) -> list[str]:
    """Texts of different lengths."""
    return [sentence(i, num_words=1 + (7 * i) % longest) for i in range(num)]


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's kind of tokenizer: 5 special tokens, 8 first halves of words, 4 second halves."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *WORDS[::5], "##ba", "##di", "##fo", "##gu"))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def byte_pairs() -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer over bytes, without merges; it has an end of text and no mask."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.5,
}
_MODERN_BERT = {
    **{name: _BERT[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
    "max_position_embeddings": 64,
    "global_attn_every_n_layers": 2,
    "local_attention": 8,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id"), 0),
}
_LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def make_model(kind: str, *, vocabulary: int, seed: int = 0, **changes: object) -> torch.nn.Module:
    """A tiny network with weights wide enough that its labels differ from each other."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": vocabulary, **changes}
    module = {
        "bert": lambda: BertForMaskedLM(BertConfig(**{**_BERT, **sizes})),
        "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**{**_BERT, "max_position_embeddings": 66, **sizes})),
        "distilbert": lambda: DistilBertForMaskedLM(
            DistilBertConfig(**{"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64, **sizes})
        ),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(
                **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0, **sizes}
            )
        ),
        "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**{**_MODERN_BERT, **sizes})),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**{**_LLAMA, "sliding_window": 8, **sizes})),
        "gemma3": lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(
                **{
                    **_LLAMA,
                    "head_dim": 8,
                    "sliding_window": 8,
                    "layer_types": ["sliding_attention", "full_attention"],
                    **sizes,
                }
            )
        ),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**{**_LLAMA, **sizes})),
        "bert_classifier": lambda: BertForSequenceClassification(BertConfig(**{**_BERT, "num_labels": 3, **sizes})),
        "llama_classifier": lambda: LlamaForSequenceClassification(LlamaConfig(**{**_LLAMA, "num_labels": 3, **sizes})),
    }[kind]()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2 and "norm" not in name.lower():
                parameter.normal_(std=0.3)
    return module.eval()


def save_model(
    folder: Path, kind: str, *, tokenizer: PreTrainedTokenizerFast | None = None, padding: int = 0, **changes: object
) -> Path:
    """A folder with model and tokenizer.

    Args:
        padding: outputs that the head and the embedding have beyond the tokenizer's tokens.
    """
    masked = kind in ("bert", "roberta", "distilbert", "modernbert", "bert_classifier")
    tokenizer = tokenizer or (word_piece() if masked else byte_pairs())
    make_model(kind, vocabulary=len(tokenizer) + padding, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
