"""A WordPiece tokenizer of a corpus's own, for demos and trials that download nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def write_word_piece(folder: Path, *, texts: Iterable[str], vocabulary_size: int) -> None:
    """Train a lower-casing WordPiece tokenizer on texts and save it as transformers does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size, special_tokens=list(_SPECIAL_TOKENS.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL_TOKENS)  # type: ignore[no-untyped-call]
    saved.save_pretrained(folder)
