"""What a process can reach: real stores, sources and teachers' files."""

from __future__ import annotations

import shutil
import time
import uuid

import pytest

from pipelines.doctor.examine import examine
from pipelines.doctor.mailbox import Listener, greeted
from pipelines.doctor.questions import AskedTeacher, Questions
from pipelines.doctor.reach_source import ask_about_source, examine_source
from pipelines.doctor.reach_store import examine_store
from pipelines.doctor.reach_teacher import ask_about_teacher, examine_teacher
from pipelines.doctor.transforms import Examine
from storage.cache import Cache
from storage.config import TeacherConfig
from storage.filesystem import Store
from storage.upkeep.sweep import PARTIAL_SECONDS, Sweep
from tests.pipelines.doctor.specimens import report
from tests.pipelines.support import config_of, experiment, folder_source, picture, timm_teacher, write_folder
from tests.storage.faulty_s3 import Fault


def questions(store, **changes):
    word = uuid.uuid4().hex[:12]
    asked = {"id": word, "asked": time.time(), "store": str(store), "folder": f"runs/doctor-{word}"}
    return Questions(**{**asked, **changes})


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


# The store


def test_a_store_is_read_written_and_left_as_it_was(tmp_path):
    asked = questions(tmp_path / "cache")
    with greeted(asked) as problem:
        assert problem is None
        found, clock = examine_store(asked, seconds=20)
        assert found.works
        assert found.creates_at_once is True
        assert clock.before - 1 < clock.stored < clock.after + 1
        assert files_below(tmp_path) == [tmp_path / "cache" / asked.greeting]
    assert files_below(tmp_path) == []


@pytest.mark.s3
def test_an_object_store_tells_its_own_time_in_whole_seconds(s3_bucket):
    asked = questions(f"s3://{s3_bucket}/doctor-time")
    with greeted(asked):
        found, clock = examine_store(asked, seconds=20)
    assert found.works
    assert clock.resolution_seconds == 1.0
    assert Store(asked.store).names("") == []


@pytest.mark.s3
def test_a_store_that_forgets_conditions_is_found(faulty_s3, s3_bucket):
    faulty_s3.decide = lambda request: Fault.FORGET_CONDITION
    asked = questions(f"s3://{s3_bucket}/doctor-forgetful")
    with greeted(asked):
        found, _ = examine_store(asked, seconds=20)
    assert found.creates_at_once is False
    assert found.works


def test_another_folder_of_the_same_path_is_told_from_one_that_cannot_be_read(tmp_path):
    found, clock = examine_store(questions(tmp_path), seconds=20)
    assert (found.elsewhere, found.read_problem, clock) == (True, None, None)
    other = questions(tmp_path, id="ba9876543210")
    with greeted(other):
        # The folder of this examination, greeted by another one: what a copied disk would show.
        found, _ = examine_store(questions(tmp_path, folder=other.folder), seconds=20)
    assert found.elsewhere
    found, _ = examine_store(questions("nothing://x"), seconds=20)
    assert "nothing://x" in found.read_problem


def test_a_store_that_does_not_answer_does_not_hold_up_the_rest(monkeypatch, tmp_path):
    monkeypatch.setattr(Store, "read", lambda store, name: time.sleep(3))
    started = time.monotonic()
    found, _ = examine_store(questions(tmp_path), seconds=0.1)
    assert time.monotonic() - started < 2
    assert found.read_problem == "no answer within 0 s"


def test_a_greeting_that_cannot_be_written_is_a_problem_and_not_an_end(tmp_path):
    (tmp_path / "file").touch()
    with greeted(questions(tmp_path / "file" / "cache")) as problem:
        assert "cannot write" in problem
    with greeted(questions("nothing://x")) as problem:
        assert "nothing://x" in problem


def test_reports_are_heard_while_they_come(tmp_path):
    asked = questions(tmp_path)
    with greeted(asked):
        listener = Listener(asked)
        for number in (2, 0):
            assert list(Examine(asked.model_dump_json()).process(number)) == []
            listener.listen()
        assert listener.elements == {0, 2}
        (heard,) = listener.reports
        first_heard, first_said = listener.first_heard[heard.process]
        assert first_said < heard.now < time.time()
        assert asked.asked < first_said < first_heard
        (tmp_path / asked.folder / "reports" / "damaged.json").write_text("{")
        listener.listen()
        assert len(listener.reports) == 1


def test_garbage_collection_takes_what_was_said_too_late(tmp_path):
    asked = questions(tmp_path)
    store = Store(str(tmp_path))
    name = asked.report_name(process=report().process)
    store.write(name, report().model_dump_json().encode())
    now = store.now()

    def found(*, at):
        times = {"now": at, "before": at, "old_before": at}
        return [one.files[0].name for one in Sweep(cache=Cache(store), references=None, **times).find_leavings()]

    assert found(at=now + 60) == []
    assert found(at=now + 2 * PARTIAL_SECONDS) == [name]


def test_a_worker_without_a_store_hands_its_report_on(tmp_path):
    asked = questions(tmp_path / "nobody greeted here")
    ((key, text),) = Examine(asked.model_dump_json()).process(3)
    assert key == 0
    assert '"elements":[3]' in text
    assert '"elsewhere":true' in text
    assert files_below(tmp_path) == []


# Source and teacher


@pytest.fixture
def pictures(tmp_path):
    return write_folder(tmp_path / "pictures", per_class=4)


def config(pictures, *, teacher=None):
    data = experiment(cache="x", source=folder_source(pictures, unit_size=6), teacher=teacher or timm_teacher("none"))
    return config_of(data)


def test_the_first_samples_of_a_source_are_compared(pictures):
    asked = ask_about_source(config(pictures).source)
    assert [sample.key for sample in asked.samples] == ["blue/000.png", "green/002.png"]
    assert (examine_source(asked).num_read, examine_source(asked).problems) == (2, ())
    (pictures / "blue" / "000.png").write_bytes(picture(2, 77))
    (problem,) = examine_source(asked).problems
    assert "begins with another sample than where the command was started" in problem
    (pictures / "blue" / "000.png").unlink()
    (problem,) = examine_source(asked).problems
    assert "'blue/000.png' of unit '00000-00006' cannot be read" in problem
    shutil.rmtree(pictures)
    assert len(examine_source(asked).problems) == 2


def test_questions_survive_the_way_as_text(pictures):
    asked = Questions.model_validate_json(questions("x", source=ask_about_source(config(pictures).source)).model_dump_json())
    assert examine_source(asked.source).problems == ()


def test_a_source_of_a_kind_this_version_does_not_know_is_a_problem(pictures):
    asked = ask_about_source(config(pictures).source)
    unknown = asked.model_copy(update={"config": {**asked.config, "kind": "of_the_future"}})
    assert "the source cannot be opened" in examine_source(unknown).problems[0]


def test_files_of_a_teacher_are_compared_by_size_and_ends(tmp_path):
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(bytes(200_000) + b"end")
    asked = ask_about_teacher(config("x", teacher=timm_teacher(weights)).teacher)
    assert asked.hub == ()
    assert asked.modules == ("timm",)
    assert examine_teacher(asked) == examine_teacher(asked).model_copy(update={"num_read": 1, "problems": (), "notes": ()})
    weights.write_bytes(bytes(200_000) + b"END")
    assert "is another file than where the command was started" in examine_teacher(asked).problems[0]
    weights.unlink()
    assert examine_teacher(asked).problems == (f"{weights} does not exist there",)


def test_a_missing_checkpoint_is_seen_before_anybody_is_asked(tmp_path):
    with pytest.raises(FileNotFoundError):
        ask_about_teacher(config("x", teacher=timm_teacher(tmp_path / "none.safetensors")).teacher)


@pytest.mark.parametrize(
    ("teacher", "hub", "modules"),
    [
        ({"kind": "timm", "name": "vit_base_patch16_224"}, ("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",), ("timm",)),
        ({"kind": "timm", "name": "hf-hub:org/model@main"}, ("org/model",), ("timm",)),
        ({"kind": "timm", "name": "no_such_model"}, (), ("timm",)),
        ({"kind": "transformers", "name": "org/model"}, ("org/model",), ("transformers",)),
        ({"kind": "masked_lm", "name": "org/model", "tokenizer": "org/words"}, ("org/model", "org/words"), ("transformers",)),
        ({"kind": "text_factory", "name": "my.own:network", "tokenizer": "my.words:make"}, (), ("torch", "my.own", "my.words")),
    ],
)
def test_what_a_teacher_is_made_of_beside_files(teacher, hub, modules):
    asked = ask_about_teacher(TeacherConfig(**teacher))
    assert (asked.hub, asked.modules, asked.files) == (hub, modules, ())


def test_modules_are_imported_where_the_teacher_is_to_run(tmp_path, monkeypatch):
    (tmp_path / "broken_teacher.py").write_text("raise RuntimeError('half installed')\n")
    (tmp_path / "leaving_teacher.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = examine_teacher(AskedTeacher(name="t", modules=("json", "no_such_module", "broken_teacher", "leaving_teacher")))
    assert found.problems == (
        "module no_such_module cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        "module broken_teacher cannot be imported: RuntimeError: half installed",
        "module leaving_teacher cannot be imported: SystemExit: 3",
    )


def test_models_of_the_hub_are_looked_for_in_the_cache_and_then_outside(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asked = AskedTeacher(name="t", hub=("org/model",))
    (problem,) = examine_teacher(asked).problems
    assert "HF_HUB_OFFLINE forbids" in problem
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (problem,) = examine_teacher(asked).problems
    assert "http://127.0.0.1:9 cannot be reached" in problem
    (tmp_path / "models--org--model" / "snapshots" / "main").mkdir(parents=True)
    assert examine_teacher(asked).notes == ("org/model is in the Hugging Face cache",)


# All of it


def test_a_check_that_hangs_or_breaks_leaves_the_others_their_time(monkeypatch, tmp_path):
    from pipelines.doctor import examine as module

    monkeypatch.setattr(module, "examine_device", lambda asked: time.sleep(5))
    monkeypatch.setattr(module, "examine_teacher", lambda asked: {}["unforeseen"])
    asked = questions(tmp_path, teacher=AskedTeacher(name="t"), limit_seconds=2.0)
    started = time.monotonic()
    with greeted(asked):
        found = examine(asked)
    assert time.monotonic() - started < 4
    assert found.device.problem == "torch does not come up: no answer within 1 s"
    assert found.teacher.problems == ("teacher: KeyError: 'unforeseen'",)
    assert found.cache.works
