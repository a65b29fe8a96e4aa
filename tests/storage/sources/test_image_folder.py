from __future__ import annotations

import os

import pytest

from storage.config import ImageFolderConfig
from storage.errors import DuplicateKeyError, SampleError, SourceError
from storage.sources import NO_LABEL, ImageFolderSource, open_source
from storage.sources.image_folder import READ_AHEAD
from tests.contracts.source_contract import SourceContract, delete, write_file

CLASSES = ("ant", "bee", "cat", "dog")


class TestContract(SourceContract):
    def write(self, root, items):
        for item in items:
            write_file(f"{root}/{self.expected_key(item)}", item.data)
        return ImageFolderConfig(kind="image_folder", path=root, unit_size=9, classes=CLASSES)

    def expected_key(self, item):
        return f"{CLASSES[item.label]}/{item.name}.PNG"

    def spoil(self, root, items, *, position, config):
        delete(f"{root}/{self.expected_key(items[position])}")


class TestUnitsByKeysContract(TestContract):
    def write(self, root, items):
        return super().write(root, items).model_copy(update={"unit_ends": "keys"})


def config(path, **kwargs):
    return ImageFolderConfig(kind="image_folder", path=str(path), **kwargs)


def write(path, *names):
    for name in names:
        write_file(f"{path}/{name}", name.encode())


def keys(source):
    return [sample.key for unit in source.units() for sample in source.read(unit)]


def test_labels_follow_the_sorted_folders(tmp_path):
    write(tmp_path, "zebra/1.jpg", "ant/deep/er/2.jpg", "ant/1.JPEG", "Bee/1.webp")
    source = open_source(config(tmp_path))
    assert source.classes == ("Bee", "ant", "zebra")
    found = {sample.key: sample.label for unit in source.units() for sample in source.read(unit)}
    assert found == {"Bee/1.webp": 0, "ant/1.JPEG": 1, "ant/deep/er/2.jpg": 1, "zebra/1.jpg": 2}


def test_unit_names_count_pictures_in_key_order(tmp_path):
    write(tmp_path, *(f"a/{index:02d}.jpg" for index in range(7)))
    assert [unit.name for unit in open_source(config(tmp_path, unit_size=3)).units()] == [
        "00000-00003",
        "00003-00006",
        "00006-00007",
    ]


def test_hidden_files_and_other_endings_are_skipped(tmp_path):
    write(tmp_path, "a/1.jpg", "a/.2.jpg", ".git/3.jpg", "a/.hidden/4.jpg", "a/readme.txt", "a/jpg", "notes.txt")
    assert keys(open_source(config(tmp_path))) == ["a/1.jpg"]


def test_names_beyond_ascii_are_keys(tmp_path):
    write(tmp_path, "été/猫 #1%20?.jpg", "été/[x]{1..3}*.jpg")
    source = open_source(config(tmp_path))
    assert keys(source) == ["été/[x]{1..3}*.jpg", "été/猫 #1%20?.jpg"]
    assert source.open(source.units()[0]).read(1) == "été/猫 #1%20?.jpg".encode()


def test_a_name_that_is_no_utf8_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / os.fsdecode(b"\xff.jpg")).touch()
    with pytest.raises(SourceError, match="not valid UTF-8; rename"):
        open_source(config(tmp_path)).units()


def test_unlabelled_folders_may_be_flat_or_nested(tmp_path):
    write(tmp_path, "1.jpg", "x/2.jpg", "x/y/3.jpg")
    source = open_source(config(tmp_path, labelled=False))
    assert source.classes is None
    [unit] = source.units()
    assert [(sample.key, sample.label) for sample in source.read(unit)] == [
        ("1.jpg", NO_LABEL),
        ("x/2.jpg", NO_LABEL),
        ("x/y/3.jpg", NO_LABEL),
    ]


def test_a_picture_outside_the_class_folders_is_refused(tmp_path):
    write(tmp_path, "a/1.jpg", "cover.jpg")
    with pytest.raises(SourceError, match=r"'cover.jpg' lies outside .*labelled: false"):
        open_source(config(tmp_path)).units()


def test_an_empty_class_folder_would_shift_labels(tmp_path):
    write(tmp_path, "a/1.jpg", "b/readme.txt", "c/1.jpg")
    with pytest.raises(SourceError, match="'b'.*holds no picture"):
        open_source(config(tmp_path)).units()
    assert open_source(config(tmp_path, classes=("a", "b", "c"))).units()[0].locator["labels"] == [0, 2]


def test_classes_give_the_label_order(tmp_path):
    write(tmp_path, "a/1.jpg", "b/1.jpg")
    write_file(f"{tmp_path}/names.txt", b"b\r\nmissing\r\na\r\n")
    for classes in (("b", "missing", "a"), str(tmp_path / "names.txt")):
        source = open_source(config(tmp_path, classes=classes))
        assert source.classes == ("b", "missing", "a")
        assert source.units()[0].locator["labels"] == [2, 0]


def test_other_labels_change_the_stat_token(tmp_path):
    write(tmp_path, "a/1.jpg", "b/1.jpg")
    [one], [other] = (open_source(config(tmp_path, classes=names)).units() for names in (("a", "b"), ("b", "a")))
    assert one.stat_token != other.stat_token


def test_an_unknown_folder_is_refused_with_the_nearest_name(tmp_path):
    write(tmp_path, "zebre/1.jpg")
    with pytest.raises(SourceError, match=r"'zebre'.*Did you mean 'zebra'\?"):
        open_source(config(tmp_path, classes=("ant", "zebra"))).units()


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"a\n\nb\n", "name 1 is empty"), (b"a\nb\na\n", "'a' stands for labels 0 and 2"), (None, "does not exist"), (b"", "empty")],
)
def test_bad_class_files_are_refused(tmp_path, text, message):
    if text is not None:
        write_file(f"{tmp_path}/names.txt", text)
    with pytest.raises(SourceError, match=message):
        open_source(config(tmp_path, classes=str(tmp_path / "names.txt")))


def test_several_paths_are_read_in_order(tmp_path):
    write(tmp_path / "two", "a/1.jpg", "c/1.jpg")
    write(tmp_path / "one", "b/1.jpg", "b/2.jpg")
    source = ImageFolderSource(
        ImageFolderConfig(kind="image_folder", path=(str(tmp_path / "two"), str(tmp_path / "one")), unit_size=2)
    )
    assert keys(source) == ["a/1.jpg", "c/1.jpg", "b/1.jpg", "b/2.jpg"]
    assert [unit.name for unit in source.units()] == ["00000-00002", "00002-00004"]
    assert [unit.locator["labels"] for unit in source.units()] == [[0, 2], [1, 1]]


def test_a_key_in_two_paths_is_refused_with_both(tmp_path):
    write(tmp_path / "one", "a/1.jpg", "a/2.jpg")
    write(tmp_path / "two", "a/2.jpg")
    paths = (str(tmp_path / "one"), str(tmp_path / "two"))
    with pytest.raises(DuplicateKeyError, match=r"'a/2.jpg'.*/one.*/two"):
        ImageFolderSource(ImageFolderConfig(kind="image_folder", path=paths)).units()


def test_links_are_followed(tmp_path):
    write(tmp_path / "blobs", "x", "more/2.jpg")
    write(tmp_path / "root", "a/0.jpg")
    (tmp_path / "root/a/1.jpg").symlink_to(tmp_path / "blobs/x")
    (tmp_path / "root/b").symlink_to(tmp_path / "blobs/more")
    (tmp_path / "root/a/gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "root/a/itself.jpg").symlink_to(tmp_path / "root/a/itself.jpg")
    os.mkfifo(tmp_path / "root/a/pipe.jpg")
    source = open_source(config(tmp_path / "root"))
    [unit] = source.units()
    samples = list(source.read(unit))
    assert [(sample.key, sample.data) for sample in samples] == [
        ("a/0.jpg", b"a/0.jpg"),
        ("a/1.jpg", b"x"),
        ("a/gone.jpg", None),
        ("a/itself.jpg", None),
        ("b/2.jpg", b"more/2.jpg"),
    ]
    assert "FileNotFoundError" in samples[2].error


def test_a_link_loop_is_refused(tmp_path):
    write(tmp_path, "a/1.jpg")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    with pytest.raises(SourceError, match="never ends"):
        open_source(config(tmp_path)).units()


def test_a_touched_link_target_changes_the_stat_token(tmp_path):
    write(tmp_path / "blobs", "x")
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/a/1.jpg").symlink_to(tmp_path / "blobs/x")
    before = open_source(config(tmp_path / "root")).units()
    write_file(f"{tmp_path}/blobs/x", b"longer than before")
    assert open_source(config(tmp_path / "root")).units()[0].stat_token != before[0].stat_token


def test_more_vanished_files_than_are_read_ahead(tmp_path):
    write(tmp_path, *(f"a/{index:03d}.jpg" for index in range(3 * READ_AHEAD)))
    source = open_source(config(tmp_path))
    [unit] = source.units()
    for index in range(0, 3 * READ_AHEAD, 2):
        (tmp_path / f"a/{index:03d}.jpg").unlink()
    samples = list(source.read(unit))
    assert [sample.data is None for sample in samples] == [True, False] * (3 * READ_AHEAD // 2)


def test_a_folder_in_place_of_a_picture_is_one_bad_sample(tmp_path):
    write(tmp_path, "a/1.jpg", "a/2.jpg")
    source = open_source(config(tmp_path))
    [unit] = source.units()
    (tmp_path / "a/1.jpg").unlink()
    (tmp_path / "a/1.jpg").mkdir()
    assert [sample.error is None for sample in source.read(unit)] == [False, True]
    with pytest.raises(SampleError, match="IsADirectoryError"):
        source.open(unit).read(0)


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing", "does not exist"), ("empty", "holds no picture"), ("a.jpg", "is a file"), ("s9://x", "Protocol not known")],
)
def test_what_is_no_folder_of_pictures_is_refused(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    write(tmp_path, "a.jpg")
    with pytest.raises(SourceError, match=message):
        open_source(config(path if "://" in path else tmp_path / path)).units()
