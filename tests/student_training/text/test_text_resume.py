"""A killed training of texts goes on as if nothing had happened, projections and masks included; two processes train as one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from storage.errors import MismatchError
from student_training.metrics import read_metrics
from student_training.text.experiment import make_text_job
from student_training.trainer import run_job
from tests.storage.text_caches import HIDDEN, MASKED, MASKED_LABELS
from tests.student_training.text.text_trainings import (
    BERT,
    MASKED_LM,
    MASKED_VIEWS,
    counting_documents,
    make_label_set,
    make_text_config,
    save_tokenizer,
    teach_labels,
    write_corpus,
)

TERMS = [
    {"kind": "soft_labels"},
    {"kind": "hidden_states", "layers": [[1, 1], [2, 2]], "projection": "shared", "weight": 0.1},
    {"kind": "hard_tokens", "weight": 0.5},
]
TARGETS = {
    "labels": {"k": 4, "positions": "masked"},
    "hidden": {"kind": "hidden_states", "layers": [1, 2], "codec": {"kind": "float16"}},
}
SETTINGS = {
    "student": MASKED_LM,
    "terms": TERMS,
    "epochs": 2,
    "ema_decay": 0.9,
    "clip_grad_norm": 1.0,
    "checkpoint_every_steps": 2,
    "log_every_steps": 3,
    "schedule": {"name": "cosine", "warmup_epochs": 0.5},
}


class StopTraining(Exception):
    pass


class StoppingStream:
    """Fails, as by Ctrl-C, when the rows of a step are read."""

    def __init__(self, stream, *, stop_at):
        self.stream = stream
        self.block_rows, self.identity, self.lengths = stream.block_rows, stream.identity, stream.lengths
        self.left = stop_at

    def read(self, **arguments):
        if self.left == 0:
            raise StopTraining
        self.left -= 1
        return self.stream.read(**arguments)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Label sets of masked labels and hidden states, and a corpus to evaluate on."""
    folder = tmp_path_factory.mktemp("texts")
    sha256 = save_tokenizer(folder / "tokenizer")
    documents = counting_documents(num=32)
    options = {"documents": documents, "tokenizer_sha256": sha256, "num_views": 2, "view": MASKED}
    make_label_set(folder, target=MASKED_LABELS, name="texts.labels", teach=teach_labels(MASKED_LABELS), **options)
    make_label_set(folder, target=HIDDEN, name="texts.hidden", **options)
    write_corpus(folder / "corpus.jsonl", counting_documents(num=8, seed=1))
    return folder


def make_config(cache, folder, **changes):
    evaluation = {"source": {"kind": "jsonl", "path": str(cache / "corpus.jsonl")}}
    return make_text_config(
        folder,
        cache=str(cache / "cache"),
        views={**MASKED_VIEWS, "count": 2},
        targets=TARGETS,
        training={**SETTINGS, "evaluation": evaluation, "tokenizer": str(cache / "tokenizer"), **changes},
    )


def run(cache, folder, *, stop_at=None, **changes):
    job = make_text_job(make_config(cache, folder, **changes))
    return run_job(job if stop_at is None else replace(job, stream=StoppingStream(job.stream, stop_at=stop_at)))


def figures(folder):
    """Metrics without clock readings."""
    return [
        {name: value for name, value in line.items() if name != "sequences_per_second"}
        for line in read_metrics(folder / "run" / "metrics.jsonl")
    ]


def assert_same_student(one, other):
    first, second = (load_file(folder / "run" / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def straight(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    assert run(cache, folder).steps == 8
    return folder


@pytest.mark.parametrize(("stop_at", "workers"), [(3, 0), (5, 2), (7, 0)])
def test_resumed_weights_are_bit_identical(cache, straight, tmp_path, stop_at, workers):
    with pytest.raises(StopTraining):
        run(cache, tmp_path, stop_at=stop_at)
    result = run(cache, tmp_path, loader_workers=workers)
    assert result.resumed_from_step == stop_at // 2 * 2
    assert_same_student(tmp_path, straight)
    assert figures(tmp_path) == figures(straight)


def test_another_config_is_refused_and_the_way_it_runs_is_not(cache, straight):
    folder = straight
    with pytest.raises(MismatchError, match=r"training\.terms: .*'weight': 0\.1.* there, .*'weight': 0\.2.* asked for"):
        run(cache, folder, terms=[TERMS[0], {**TERMS[1], "weight": 0.2}, TERMS[2]])
    student = {**MASKED_LM, "config": {**BERT, "num_hidden_layers": 3}}
    with pytest.raises(MismatchError, match=r"training\.student\.config\.num_hidden_layers: 2 there, 3 asked for"):
        run(cache, folder, student=student)
    assert run(cache, folder, loader_workers=1, log_every_steps=1).already_finished


def run_shared(cache, folder):
    """Train without dropout, so that processes differ in nothing but their share."""
    student = {**MASKED_LM, "config": {**BERT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
    settings = {"student": student, "epochs": 1, "batch_size": 7, "optimizer": {"name": "sgd", "learning_rate": 0.05}}
    run(Path(cache), Path(folder) / "vectors", terms=TERMS[1:2], **settings)  # the head has no gradient
    return run(Path(cache), Path(folder) / "all", **settings)


@pytest.mark.integration
def test_two_processes_give_the_curve_of_one(cache, tmp_path):
    run_shared(cache, tmp_path / "one")
    script = textwrap.dedent(
        f"""
        from tests.student_training.text.test_text_resume import run_shared

        result = run_shared({str(cache)!r}, {str(tmp_path / "two")!r})
        assert result.num_evaluated == 8, result
        """
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[3]
    common = {
        **os.environ,
        "PYTHONPATH": str(root),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=root,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    for run_name in ("all", "vectors"):
        one, two = (figures(tmp_path / name / run_name) for name in ("one", "two"))
        assert len(one) == len(two) > 2
        for line, other in zip(one, two, strict=True):
            for name in set(line) - {"kind"}:
                assert other[name] == pytest.approx(line[name], rel=1e-3), (run_name, name, line["step"])
