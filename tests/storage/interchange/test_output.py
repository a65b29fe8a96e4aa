"""An export is whole or is not there, whatever ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid

import fsspec
import pytest

from storage.cache import Cache
from storage.errors import CacheError, CorruptError, MismatchError
from storage.interchange import export_labels, import_tinyvit
from storage.interchange.output import INCOMPLETE, SUMMARY, ExportFolder
from storage.label_set import LabelSet
from tests.storage.caches import read_tree
from tests.storage.interchange.label_sets import make_label_set, rows_of
from tests.storage.text_caches import (
    CLASS_LABELS,
    MASKED,
    MASKED_LABELS,
    PLAIN,
    draw_documents,
    make_text_labeller,
    make_text_request,
)

LAYOUTS = ("parquet", "webdataset", "tinyvit")


@pytest.fixture
def places(tmp_path):
    """A local folder and one in a store without folders; nothing lies there."""
    return {"local": str(tmp_path / "exports" / "out"), "memory": f"memory://{uuid.uuid4().hex}/out"}


def fill_folder(url, *, content=b"1", force=False, fail=None):
    with ExportFolder(url, force=force) as folder:
        for name in ("a", "deep/b"):
            with folder.create(name) as file:
                file.write(content)
                if name == fail:
                    raise RuntimeError("stopped")
        if fail == "commit":
            raise RuntimeError("stopped")
        folder.commit({"what": "a test"})


def around(url):
    """Every file in the folder's parent."""
    parent = url.rsplit("/", 1)[0]
    fs, path = fsspec.core.url_to_fs(parent)
    return read_tree(parent) if fs.exists(path) else {}


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_folder_appears_with_its_summary(places, where):
    fill_folder(places[where])
    files = read_tree(places[where])
    assert set(files) == {"a", "deep/b", SUMMARY}
    assert json.loads(files[SUMMARY]) == {"what": "a test", "files": {"a": 1, "deep/b": 1}}
    assert set(around(places[where])) == {"out/a", "out/deep/b", f"out/{SUMMARY}"}


@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize("fail", ["a", "deep/b", "commit"])
def test_an_error_leaves_nothing(places, where, fail):
    with pytest.raises(RuntimeError, match="stopped"):
        fill_folder(places[where], fail=fail)
    assert around(places[where]) == {}


@pytest.mark.parametrize("where", ["local", "memory"])
def test_an_export_is_replaced_only_when_told_to(places, where):
    url = places[where]
    fill_folder(url)
    with pytest.raises(CacheError, match="holds an export already; give another path, or --force to replace it"):
        fill_folder(url, content=b"22")
    assert read_tree(url)["a"] == b"1"
    fill_folder(url, content=b"22", force=True)
    assert read_tree(url)["a"] == b"22"
    assert set(around(url)) == {"out/a", "out/deep/b", f"out/{SUMMARY}"}


@pytest.mark.parametrize("where", ["local", "memory"])
def test_what_lies_beside_an_export_is_not_removed_with_it(places, where):
    url = places[where]
    fill_folder(url)
    fs, root = fsspec.core.url_to_fs(url)
    fs.makedirs(f"{root}/runs", exist_ok=True)
    fs.pipe_file(f"{root}/runs/student.pt", b"weeks")
    before = read_tree(url)
    with pytest.raises(CacheError, match="holds 1 files that are not of the export there, such as 'runs/student.pt'"):
        fill_folder(url, content=b"22", force=True)
    assert read_tree(url) == before
    fs.pipe_file(f"{root}/{SUMMARY}", b"cut off")
    with pytest.raises(CacheError, match="holds 3 files that are not of the export there"):
        fill_folder(url, content=b"22", force=True)


def test_an_export_that_fails_while_it_replaces_another_keeps_it(places):
    fill_folder(places["local"])
    with pytest.raises(RuntimeError):
        fill_folder(places["local"], content=b"22", force=True, fail="deep/b")
    assert read_tree(places["local"])["a"] == b"1"


@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_export_is_never_replaced(places, where, force):
    fs, root = fsspec.core.url_to_fs(places[where])
    fs.makedirs(root, exist_ok=True)
    fs.pipe_file(f"{root}/thesis.tex", b"four years")
    with pytest.raises(CacheError, match="holds 1 files that are no export of Decant, which are not replaced"):
        fill_folder(places[where], force=force)
    assert read_tree(places[where]) == {"thesis.tex": b"four years"}


def test_an_empty_folder_is_filled_and_a_file_is_not_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    fill_folder(str(tmp_path / "empty"))
    assert (tmp_path / "empty" / "a").read_bytes() == b"1"
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(CacheError, match="is a file, so no folder can be exported there"):
        fill_folder(str(tmp_path / "file"), force=True)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_an_upload_that_was_killed_is_no_export_and_is_done_over_without_being_told(places):
    url = places["memory"]
    folder = ExportFolder(url).__enter__()  # and never left, as by a process that is killed
    with folder.create("labels-000000.tar") as file:
        file.write(b"half")
    assert set(read_tree(url)) == {"labels-000000.tar", INCOMPLETE}
    # Somebody has put something else there since.
    fs, root = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{root}/more/labels-000000.tar", b"weeks")
    with pytest.raises(CacheError, match="holds 1 files that are not of the export there, such as 'more/labels-000000.tar'"):
        fill_folder(url)
    fs.rm_file(f"{root}/more/labels-000000.tar")
    fill_folder(url)
    assert set(read_tree(url)) == {"a", "deep/b", SUMMARY}


@pytest.mark.s3
def test_a_bucket_is_a_folder_too_and_stays(s3_bucket):
    bucket = f"{s3_bucket}-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(bucket)
    for force in (False, True):
        fill_folder(f"s3://{bucket}", force=force)
        assert set(read_tree(f"s3://{bucket}")) == {"a", "deep/b", SUMMARY}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_part_ends_the_export_and_leaves_nothing(tmp_path, layout):
    label_set = make_label_set(tmp_path / "cache", units=[[f"{number}" for number in range(20)]], num_views=1)
    path = tmp_path / "cache" / label_set.tar_path(0)
    data = bytearray(path.read_bytes())
    place = label_set.parts.column("blocks")[0].as_py()[-1]
    data[place["offset"] + place["num_bytes"] // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptError, match="checksum"):
        export_labels(label_set, url=str(tmp_path / "exports/out"), layout=layout)
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_killed_export_is_not_there_and_can_be_run_again(tmp_path, layout):
    units = [[f"{number}" for number in range(2000)]]
    make_label_set(tmp_path / "cache", units=units, num_views=1, block=10)
    target = tmp_path / "exports" / "out"
    program = (
        "import sys, time\n"
        "from storage.cache import Cache\n"
        "from storage.interchange import export_labels\n"
        "from storage.label_set import LabelSet\n"
        "def slowly(done, total):\n"
        "    print(done, flush=True)\n"
        "    time.sleep(0.05)\n"
        "label_set = LabelSet.open(Cache.at(sys.argv[1]), name_or_id='tiny')\n"
        "export_labels(label_set, url=sys.argv[2], layout=sys.argv[3], on_progress=slowly)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "cache"), str(target), layout], stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"10\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()
    assert all(path.name.startswith(".out.") for path in (tmp_path / "exports").iterdir())
    again = export_labels(LabelSet.open(Cache.at(str(tmp_path / "cache")), name_or_id="tiny"), url=str(target), layout=layout)
    assert again.num_rows == 2000
    assert json.loads((target / SUMMARY).read_bytes())["num_rows"] == 2000


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_are_equal_byte_by_byte_and_equal_in_a_store(tmp_path, places, layout):
    label_set = make_label_set(tmp_path / "cache", units=[["a", "b.c"], ["d"]], dead=frozenset({("d", 1)}))
    progress = []
    one = export_labels(label_set, url=str(tmp_path / "one"), layout=layout, on_progress=lambda *done: progress.append(done))
    export_labels(label_set, url=str(tmp_path / "two"), layout=layout)
    export_labels(label_set, url=places["memory"], layout=layout)
    assert read_tree(str(tmp_path / "one")) == read_tree(str(tmp_path / "two")) == read_tree(places["memory"])
    assert progress == [(2, 5), (3, 5), (5, 5)]
    assert (one.num_rows, one.num_missing) == (5, 1)
    assert any("1 samples of these views have no label" in sentence for sentence in one.lost)


@pytest.mark.parametrize("views", [[2], [0, -1], []])
def test_views_that_are_not_there_are_refused(tmp_path, views):
    label_set = make_label_set(tmp_path / "cache", units=[["a"]])
    with pytest.raises(MismatchError, match="has views 0 to 1, asked for were"):
        export_labels(label_set, url=str(tmp_path / "out"), layout="parquet", views=views)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("view", "target"), [(MASKED, MASKED_LABELS), (PLAIN, CLASS_LABELS)])
def test_labels_of_texts_are_refused_as_what_they_are(tmp_path, layout, view, target):
    request = make_text_request(view=view, target=target, kind="sequence_classifier" if target is CLASS_LABELS else "masked_lm")
    label_set = make_text_labeller(tmp_path, documents=draw_documents(num=4), request=request).label()
    with pytest.raises(MismatchError, match="is of texts, whose rows go with tokens that no layout holds"):
        export_labels(label_set, url=str(tmp_path / "out"), layout=layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.s3
def test_labels_go_to_an_object_store_and_come_back(tmp_path, s3_bucket):
    label_set = make_label_set(tmp_path / "cache", units=[["a", "b"], ["c d"]])
    url = f"s3://{s3_bucket}/{uuid.uuid4().hex}/out"
    export_labels(label_set, url=url, layout="tinyvit")
    export_labels(label_set, url=str(tmp_path / "out"), layout="tinyvit")
    assert read_tree(url) == read_tree(str(tmp_path / "out"))
    again, report = import_tinyvit(
        url, Cache.at(f"{url}-cache"), name="again", teacher="tiny", num_classes=10, image_size=(8, 8), unit_size=2
    )
    assert (report.num_rows, report.num_parts) == (6, 2)
    assert rows_of(again).keys() == rows_of(label_set).keys()
    with pytest.raises(CacheError, match="cannot write s3://no-such-bucket-here/out"):
        export_labels(label_set, url="s3://no-such-bucket-here/out", layout="parquet")


def test_a_disk_that_takes_no_more_is_said(tmp_path):
    make_label_set(tmp_path / "cache", units=[[f"{number}" for number in range(100)]], num_views=1)
    program = (
        "import resource, sys\n"
        "from storage.cache import Cache\n"
        "from storage.errors import CacheError\n"
        "from storage.interchange import export_labels\n"
        "from storage.label_set import LabelSet\n"
        "label_set = LabelSet.open(Cache.at(sys.argv[1]), name_or_id='tiny')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    export_labels(label_set, url=sys.argv[2], layout='webdataset')\n"
        "except CacheError as error:\n"
        "    print(error)\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "cache"), str(tmp_path / "exports/out")]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    assert f"cannot write {tmp_path / 'exports/out'}: File too large; nothing was exported" in ended.stdout
    assert list((tmp_path / "exports").iterdir()) == []
