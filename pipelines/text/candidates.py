"""Make a table of words that may stand for each other, for `source.augmentation`: nearest neighbours among word vectors.

python -m pipelines.text.candidates --model bert-base-uncased --output candidates.jsonl
python -m pipelines.text.candidates --vectors glove.6B.300d.txt --output s3://bucket/candidates.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.teachers.base import describe
from storage.errors import DecantError, TeacherError
from storage.sources.compression import read_chunks
from storage.sources.files import open_store, reaching
from storage.sources.records import RecordStyle, iter_records

_ROWS_AT_A_TIME = 512
_MAX_LINE_BYTES = 1 << 20
_PIECE = "##"
_WORD_MARKS = ("▁", "Ġ")


def words_of(vocabulary: dict[str, int]) -> dict[str, int]:
    """Return the ids of the tokens of a vocabulary that are words by themselves, by the word: letters only, no pieces."""
    marked = {token[1:]: index for token, index in vocabulary.items() if token.startswith(_WORD_MARKS)}
    whole = marked if marked else {token: index for token, index in vocabulary.items() if not token.startswith(_PIECE)}
    return {word: index for word, index in sorted(whole.items(), key=lambda item: item[1]) if word.isalpha()}


def model_vectors(name: str) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Return the words of a language model's vocabulary and float32 [words, width], its input embeddings of them.

    Args:
        name: hub id or local folder of a transformers model.

    Raises:
        TeacherError: it does not load, or its vocabulary holds no words.
    """
    try:
        from transformers import AutoModel, AutoTokenizer

        words = words_of(AutoTokenizer.from_pretrained(name).get_vocab())
        weights = AutoModel.from_pretrained(name).get_input_embeddings().weight.detach().float().numpy()
    except Exception as error:  # hubs and models raise what they like
        raise TeacherError(
            f"{name}: no word vectors can be taken from it: {describe(error)}. Give a transformers language model with --model, "
            "or a file of word vectors with --vectors"
        ) from error
    words = {word: index for word, index in words.items() if index < len(weights)}
    if len(words) < 2:
        raise TeacherError(
            f"{name}: its vocabulary holds {len(words)} whole words, so none could stand for another; use --vectors"
        )
    return list(words), weights[list(words.values())]


def file_vectors(url: str, *, num_words: int) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Return words and float32 [words, width] from a file of lines `word number number ...`, as GloVe's are; also compressed.

    Args:
        url: the file.
        num_words: how many words are taken; such files begin with the most frequent ones.

    Raises:
        SourceError: it cannot be read.
        TeacherError: a line says something else.
    """
    words: list[str] = []
    vectors: list[npt.NDArray[np.float32]] = []
    records = iter_records(read_chunks(url), style=RecordStyle(skip_blank=True), max_record_bytes=_MAX_LINE_BYTES, url=url)
    for record in records:
        word, _, numbers = (record.data or b"").decode(errors="replace").rstrip().partition(" ")
        try:
            vector = np.array(numbers.split(" "), dtype=np.float32)
        except ValueError as error:
            raise TeacherError(f"{url}: line {record.line} is not a word and its vector: {error}") from error
        if vectors and len(vector) != len(vectors[0]):
            raise TeacherError(
                f"{url}: line {record.line} has {len(vector)} numbers, those before have {len(vectors[0])}; write it again"
            )
        if word.isalpha():
            words.append(word)
            vectors.append(vector)
        if len(words) == num_words:
            break
    if len(words) < 2:
        raise TeacherError(f"{url} holds {len(words)} words, so none could stand for another")
    return words, np.stack(vectors)


def nearest(vectors: npt.NDArray[np.float32], *, count: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield for each row int64 [count], the rows whose cosine with it is largest, largest first, itself left out.

    Args:
        vectors: float32 [rows, width]; a row of zeros is near to nothing.
        count: at most as many as there are other rows.
    """
    count = min(count, len(vectors) - 1)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    for start in range(0, len(unit), _ROWS_AT_A_TIME):
        cosines = unit[start : start + _ROWS_AT_A_TIME] @ unit.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -np.inf
        best = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        order = np.lexsort((best, -np.take_along_axis(cosines, best, axis=1)), axis=1)
        yield from np.take_along_axis(best, order, axis=1)


def write_candidates(url: str, *, words: Sequence[str], vectors: npt.NDArray[np.float32], count: int) -> None:
    """Write the table: JSON Lines of {"word": ..., "candidates": [...]}, the nearest first.

    Raises:
        SourceError: the place cannot be written.
    """
    lines = [
        json.dumps({"word": word, "candidates": [words[index] for index in row.tolist()]}, ensure_ascii=False)
        for word, row in zip(words, nearest(vectors, count=count), strict=True)
    ]
    fs, path = open_store(url)
    with reaching(url, action="write"):
        fs.makedirs(fs._parent(path), exist_ok=True)
        fs.pipe_file(path, ("\n".join(lines) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.text.candidates",
        description="Make a table of words that may stand for each other, for source.augmentation.",
        epilog="example: python -m pipelines.text.candidates --model bert-base-uncased --output candidates.jsonl",
    )
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--model", metavar="NAME", help="hub id or local folder of a transformers model: its input embeddings")
    origin.add_argument(
        "--vectors", metavar="FILE", help="file of lines `word number number ...`, as GloVe's are; also .gz, .zst"
    )
    parser.add_argument("--output", metavar="FILE", required=True, help="local path or fsspec URL of the table")
    parser.add_argument("--candidates", metavar="N", type=int, default=15, help="candidates of each word (default: 15)")
    parser.add_argument("--words", metavar="N", type=int, default=50_000, help="first words of a file (default: 50000)")
    options = parser.parse_args(arguments)
    if options.candidates < 1 or options.words < 2:
        parser.error(f"--candidates {options.candidates} --words {options.words}: give at least 1 candidate and 2 words")
    try:
        if options.model is not None:
            words, vectors = model_vectors(options.model)
        else:
            words, vectors = file_vectors(options.vectors, num_words=options.words)
        write_candidates(options.output, words=words, vectors=vectors, count=options.candidates)
    except DecantError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{options.output}: candidates of {len(words)} words\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
