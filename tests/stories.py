"""stories260K as transformers saves models: weights by `tests.benchmarks.story_teacher`, the tokenizer from llama2.c's file."""

from __future__ import annotations

import struct
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from tests.benchmarks.story_teacher import load_teacher

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
STORIES = DATA / "stories260k_lm"
_SPECIAL = ("<unk>", "<s>", "</s>")


def read_pieces(path: Path) -> list[tuple[str, float]]:
    """Return pieces and scores of a llama2.c tokenizer, by id; spaces are SentencePiece's."""
    data = path.read_bytes()
    offset = 4
    pieces: list[tuple[str, float]] = []
    while offset < len(data):
        score, num_bytes = struct.unpack_from("<fi", data, offset)
        offset += 8
        pieces.append((data[offset : offset + num_bytes].decode().replace(" ", "▁"), score))
        offset += num_bytes
    return [(name, 0.0) for name in _SPECIAL] + pieces[len(_SPECIAL) :]


def make_tokenizer(pieces: list[tuple[str, float]]) -> PreTrainedTokenizerFast:
    """Return the byte-pair tokenizer that merges the piece of the best score first, and falls back to bytes."""
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece, _ in sorted(pieces, key=lambda one: -one[1])
        if not (piece.startswith("<") and piece.endswith(">") and len(piece) > 1)
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def save_stories(folder: Path) -> Path:
    """Write model and tokenizer to a folder and return it."""
    load_teacher().model.save_pretrained(folder)
    make_tokenizer(read_pieces(STORIES / "tok512.bin")).save_pretrained(folder)
    return folder


def documented_story() -> str:
    """Return the text that the model writes when it always takes the most probable token, as its makers printed it."""
    page = (STORIES / "stories260K.md").read_text()
    return page.split("-t 0.0\n", 1)[1].split("\n```", 1)[0]
