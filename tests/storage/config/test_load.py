"""Reading config files: what cannot be read, overrides, working directory, environment."""

from textwrap import dedent

import fsspec
import pytest

from storage.config import load_config
from storage.config.load import parse_config
from storage.errors import ConfigError

EXPERIMENT = """\
name: flowers
cache: runs/cache
source: &train
  kind: image_folder
  path: data/${FLOWERS}/train
teacher: {kind: timm, name: vit_base_patch16_224, kwargs: {img_size: 64}}
training:
  output: runs/student
  student: {name: vit_tiny_patch16_224}
  targets: {kind: cached, label_set: best}
  optimizer: {learning_rate: 1e-3}
  evaluation: {source: {<<: *train, path: data/test}}
"""


@pytest.fixture
def experiment(tmp_path):
    file = tmp_path / "flowers.yaml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    return file


def error_of(function, *arguments, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments, **options)
    return str(caught.value)


def test_a_local_file_and_a_url_give_the_same_config(experiment):
    with fsspec.open("memory://configs/flowers.yaml", "wb") as file:
        file.write(experiment.read_bytes())
    config = load_config(experiment)
    assert load_config(str(experiment)) == config
    assert load_config("memory://configs/flowers.yaml") == config
    assert config.training is not None
    assert config.training.optimizer.learning_rate == 1e-3
    assert config.training.evaluation is not None
    assert config.training.evaluation.source.kind == "image_folder"
    assert config.training.evaluation.source.path == "data/test"


def test_neither_environment_nor_folder_changes_a_path(experiment, monkeypatch):
    monkeypatch.setenv("FLOWERS", "roses")
    assert load_config(experiment).source.path == "data/${FLOWERS}/train"


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: x\r\ncache: y\r\n")
    assert load_config(file).name == "x"


def test_overrides(experiment):
    config = load_config(
        experiment,
        overrides=[
            "training.optimizer.learning_rate=5e-4",
            "training.loss.hard_weight=0.5",
            "source.path=[a, b]",
            "target={k: null}",
            "teacher.kwargs.img_size=32",
            "teacher.kwargs.new.key=a=b",
            "training.targets={kind: hard}",
            "training.evaluation=null",
            "training.epochs=3",
            "training.epochs=4",
            "cache=",
        ],
    )
    assert config.training.optimizer.learning_rate == 5e-4
    assert config.training.loss.hard_weight == 0.5
    assert config.source.path == ("a", "b")
    assert config.target.k is None
    assert config.teacher.kwargs == {"img_size": 32, "new": {"key": "a=b"}}
    assert config.training.targets.kind == "hard"
    assert config.training.evaluation is None
    assert config.training.epochs == 4
    assert config.cache is None


def test_an_override_of_one_use_of_an_anchor_leaves_the_others(experiment):
    config = load_config(experiment, overrides=["source.unit_size=7"])
    assert config.source.unit_size == 7
    assert config.training.evaluation.source.unit_size == 4000


def test_bad_overrides_are_reported_at_once_with_the_nearest_names(experiment):
    overrides = [
        "training.epocs=3",
        "trainin.epochs=3",
        "training.epochs=many",
        "training.targets.kind=hard",
        "source.path.first=a",
        "training.epochs",
        "training..epochs=2",
        "teacher.name=[a",
        "name=!!python/name:os.system x",
        "views.kind=random_crop",
        "generation={workers: 0}",
    ]
    assert error_of(load_config, experiment, overrides=overrides) == dedent(f"""\
        {experiment}: 11 problems
          override 'training.epochs': write it as key.key=value, for instance training.epochs=3
          override 'training..epochs=2': write it as key.key=value, for instance training.epochs=3
          override 'teacher.name=[a': line 1, column 3: YAML syntax error while parsing a flow sequence: expected ',' or ']', but got '<stream end>'
          override 'name=!!python/name:os.system x': line 1: tag !!python/name:os.system is refused, a config holds plain data only: remove the tag
          override 'source.path.first=a': source.path is no section but 'data/${{FLOWERS}}/train'; set source.path as a whole
          views.kind = "random_crop": expected evaluation, random_resized_crop, tokens or masked_tokens. Did you mean 'random_resized_crop'? (from override 'views.kind=random_crop')
          generation.workers = 0: expected integer >= 1 (from override 'generation={{workers: 0}}')
          training.targets.label_set = "best": unknown key. It belongs to kind cached, not to hard.
          training.epochs = "many": expected integer >= 1 (from override 'training.epochs=many')
          training.epocs = 3: unknown key. Did you mean 'epochs'? (from override 'training.epocs=3')
          trainin = {{"epochs": 3}}: unknown key. Did you mean 'training'? (from override 'trainin.epochs=3')""")


def test_a_missing_file_names_its_nearest_neighbour(experiment):
    folder = experiment.parent
    assert error_of(load_config, folder / "flower.yaml") == (
        f"{folder}/flower.yaml: there is no such config file. Did you mean '{folder}/flowers.yaml'?"
    )
    assert (
        error_of(load_config, folder / "zzz.yaml")
        == f"{folder}/zzz.yaml: there is no such config file. Give the path of a YAML file."
    )
    assert error_of(load_config, "memory://nowhere/x.yaml") == (
        "memory://nowhere/x.yaml: there is no such config file. Give the path of a YAML file."
    )


def test_what_cannot_be_read_says_why(tmp_path):
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: naïve".encode("latin-1"))
    assert error_of(load_config, file) == f"{file}: the file is not UTF-8 text (byte 8); save it as UTF-8"
    assert error_of(load_config, tmp_path).startswith(f"{tmp_path}: the config file cannot be read (IsADirectoryError: ")
    assert error_of(load_config, "gopher://x/y.yaml").startswith(
        "gopher://x/y.yaml: the config file cannot be read (ValueError: "
    )


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "null\n"])
def test_an_empty_file(tmp_path, text):
    file = tmp_path / "empty.yaml"
    file.write_text(text, encoding="utf-8")
    assert error_of(load_config, file) == f"{file}: the file is empty; it needs at least the key name. See docs/configuration.md"


@pytest.mark.parametrize(
    ("text", "noun"), [("- name: x\n", "list"), ("name\n", "string"), ("3\n", "number"), ("true\n", "truth value")]
)
def test_a_top_level_that_is_no_mapping(tmp_path, text, noun):
    file = tmp_path / "top.yaml"
    file.write_text(text, encoding="utf-8")
    assert error_of(load_config, file) == (
        f"{file}: expected a mapping with keys name, cache, source, teacher, views, target, targets, generation, training, "
        f"but the top level is a {noun}"
    )


def test_syntax_errors_and_duplicate_keys_come_with_their_lines(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("name: x\ncache: [a\n", encoding="utf-8")
    assert error_of(load_config, file) == (
        f"{file}: 1 problem\n  line 3, column 1: YAML syntax error while parsing a flow sequence: "
        "expected ',' or ']', but got '<stream end>'"
    )
    file.write_text("name: x\ncache: a\nname: y\ncache: b\n", encoding="utf-8")
    assert error_of(load_config, file) == dedent(f"""\
        {file}: 2 problems
          line 3: key 'name' is given twice, first on line 1: remove one
          line 4: key 'cache' is given twice, first on line 2: remove one""")


def test_a_section_that_holds_itself(tmp_path):
    file = tmp_path / "loop.yaml"
    file.write_text("name: x\nteacher: &t {kind: timm, name: y, kwargs: {loop: *t}}\n", encoding="utf-8")
    assert error_of(load_config, file, overrides=["cache=a"]) == (
        f"{file}: 1 problem\n  an alias holds itself, or aliases repeat the document to more than 100,000 values: "
        "write out what you need"
    )


def test_config_errors_end_the_command_line_with_status_2():
    with pytest.raises(ConfigError) as caught:
        parse_config({}, origin="x")
    assert caught.value.exit_code == 2
