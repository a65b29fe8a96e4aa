"""Training on hard labels needs some: a source or a label set without any is refused before work starts."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage.cache import Cache
from storage.config import ExperimentConfig
from storage.errors import ConfigError
from storage.sources import open_source
from storage.streams.label_stream import LabelStream
from student_training.experiment import run_experiment
from student_training.hard_labels import require_hard_labels
from student_training.job import make_job
from tests.storage.caches import NUM_CLASSES, Labeller, make_request
from tests.storage.caches import write_pictures as write_label_set_pictures
from tests.student_training.support import STUDENT, VIEW, make_config, source_config, write_pictures
from tests.student_training.text.text_trainings import make_text_config, save_tokenizer, topic_documents, write_corpus


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), per_class=4)


def run(folder, *, source, training_source=None, **training):
    section = {
        "output": str(folder / "run"),
        "student": {**STUDENT, "num_classes": 3},
        "targets": {"kind": "hard"},
        "source": training_source,
        "batch_size": 4,
        "torch_threads": 1,
        "device": "cpu",
        **training,
    }
    data = {"name": "student", "source": source, "views": {"kind": "evaluation"}, "training": section}
    return run_experiment(ExperimentConfig.model_validate_json(json.dumps(data)), say=lambda line: None)


def test_a_folder_that_is_not_labelled_is_refused(pictures, tmp_path):
    source = {**source_config(pictures), "labelled": False}
    with pytest.raises(ConfigError, match="source gives no sample a hard label, so the loss would be 0"):
        run(tmp_path, source=source)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="training.source gives no sample a hard label"):
        run(tmp_path, source=source_config(pictures), training_source=source, terms=[{"kind": "hard_label"}])
    assert run(tmp_path, source=source_config(pictures))["steps"] == 3


def test_a_column_of_minus_one_is_no_labels(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (20, 20), (1, 2, 3)).save(data, format="PNG")
    pictures = [{"bytes": data.getvalue(), "path": None}] * 8
    pq.write_table(pa.table({"image": pictures, "label": [-1] * 8}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="gives no sample a hard label"):
        run(tmp_path, source={"kind": "parquet", "path": str(tmp_path / "a.parquet")})


def job_on(folder, source, *, hard_weight):
    labeller = Labeller(cache=Cache.at(str(folder / "cache")), source=open_source(source), request=make_request())
    return make_job(
        make_config(folder, folder / "run", targets={"kind": "cached"}, loss={"hard_weight": hard_weight}),
        stream=LabelStream(labeller.label(name="some"), source=open_source(source)),
        view=VIEW,
        num_classes=NUM_CLASSES,
        generation_temperature=1.0,
        mean_class_probs=None,
        teacher=None,
    )


def test_a_label_set_without_hard_labels_serves_soft_labels_alone(tmp_path):
    source = write_label_set_pictures(tmp_path / "pictures")
    # Its statistics count none, as those of vectors and tokens never do: the samples themselves say that there are labels.
    require_hard_labels(job_on(tmp_path, source, hard_weight=0.5))
    bare = source.model_copy(update={"labelled": False})
    require_hard_labels(job_on(tmp_path / "bare", bare, hard_weight=0.0))
    with pytest.raises(ConfigError, match=r"label set 'some' holds no hard label of any sample.*training.loss.hard_weight: 0"):
        require_hard_labels(job_on(tmp_path / "bare", bare, hard_weight=0.5))


def test_texts_without_labels_are_refused(tmp_path):
    save_tokenizer(tmp_path / "tokenizer")
    config = make_text_config(
        tmp_path,
        training={
            "student": {"kind": "text_cnn", "num_classes": 3},
            "targets": {"kind": "hard"},
            "tokenizer": str(tmp_path / "tokenizer"),
        },
        source={**write_corpus(tmp_path / "texts.jsonl", topic_documents(num=16)), "label_field": None},
    )
    with pytest.raises(ConfigError, match="gives no sample a hard label"):
        run_experiment(config, say=lambda line: None)
