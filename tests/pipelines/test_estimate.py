"""What a plan says of bytes is what labels then have."""

from __future__ import annotations

import pytest

from pipelines.estimate import estimate
from pipelines.label import plan_run, run_label
from tests.pipelines.support import config_of
from tests.pipelines.text.models import save_model, sentence


@pytest.mark.parametrize(("positions", "longest"), [(None, 8), ("masked", 8), ("masked", 60)])
def test_bytes_of_texts_are_foretold(tmp_path, positions, longest):
    kind = "bert_classifier" if positions is None else "bert"
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{sentence(i, num_words=1 + (7 * i) % longest)}\n" for i in range(24_000 // longest)))
    data = {
        "name": "texts",
        "cache": str(tmp_path / "cache"),
        "source": {"kind": "text", "path": str(corpus)},
        "teacher": {
            "kind": "sequence_classifier" if positions is None else "masked_lm",
            "name": str(save_model(tmp_path / "teacher", kind)),
            "device": "cpu",
        },
        "views": {"kind": "tokens" if positions is None else "masked_tokens", "length": 64},
        "target": {"kind": "soft_labels", "k": 3, "positions": positions},
        "generation": {"batch_size": 64, "torch_threads": 1},
    }
    run = plan_run(config_of(data), progress=False)
    (cost,) = estimate([run])
    assert 32 <= cost.num_measured_samples <= 2000
    report = run_label(run, progress=False)
    assert cost.total_bytes == pytest.approx(report.parts_bytes, rel=0.15)
    assert cost.bytes_per_sample == pytest.approx(report.parts_bytes / report.num_samples, rel=0.15)
