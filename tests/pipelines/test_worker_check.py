"""A worker that is not as the process that submitted its job is refused, with what differs and what to do."""

from __future__ import annotations

import json
import platform
import socket
from dataclasses import replace

import pytest
from apache_beam.internal import pickler

from pipelines.worker_check import Expected, another_cache, check_cache, has_refused
from storage.cache import Cache
from storage.errors import CacheError, MismatchError, SourceError, TeacherError
from storage.label_runs.folder import RunFolder
from tests.pipelines.support import config_of, experiment, folder_source, save_teacher, timm_teacher, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def config(folder):
    source = folder_source(write_folder(folder / "pictures", per_class=1))
    return config_of(
        experiment(cache=folder / "cache", source=source, teacher=timm_teacher(save_teacher(folder / "t.safetensors")))
    )


@pytest.fixture
def expected(config):
    return Expected.of_this_process(teacher=config.teacher, source=config.source)


def test_this_process_is_what_it_expects_after_a_journey(expected, folder):
    again = pickler.loads(pickler.dumps(expected))
    assert again == expected
    again.check_versions(allow_differences=False)
    again.check_paths()
    assert again.paths == {"teacher.checkpoint": str(folder / "t.safetensors"), "source.path": str(folder / "pictures")}
    assert {"decant", "torch", "timm", "transformers", "numpy"} <= set(again.packages)


@pytest.mark.parametrize("name", ["torch", "timm", "transformers", "tokenizers", "numpy", "pillow"])
def test_other_libraries_are_refused_unless_they_are_allowed(expected, name):
    other = replace(expected, packages={**expected.packages, name: "0.0.1"}, host="submitter")
    with pytest.raises(MismatchError) as caught:
        other.check_versions(allow_differences=False)
    message = str(caught.value)
    assert message.startswith(f"a worker on host {socket.gethostname()} has other versions than submitter")
    assert f"{name} {expected.packages[name]} (there: 0.0.1)" in message
    assert message.endswith("generation.allow_version_differences: true")
    other.check_versions(allow_differences=True)


def test_a_library_that_is_missing_on_one_side_is_a_difference(expected):
    packages = {name: version for name, version in expected.packages.items() if name != "timm"}
    with pytest.raises(MismatchError, match=rf"timm {expected.packages['timm']} \(there: none\)"):
        replace(expected, packages=packages).check_versions(allow_differences=False)


@pytest.mark.parametrize("changes", [{"packages": {"decant": "9.9.9"}}, {"python": "2.7"}])
def test_another_decant_or_python_is_refused_whatever_is_allowed(expected, changes):
    packages = {**expected.packages, **changes.pop("packages", {})}
    with pytest.raises(MismatchError, match=r"decant .* \(there: 9.9.9\)|Python .* \(there: 2.7\)") as caught:
        replace(expected, packages=packages, **changes).check_versions(allow_differences=True)
    assert "allow_version_differences" not in str(caught.value)


def test_builds_of_one_version_may_differ(expected):
    packages = {**expected.packages, "torch": expected.packages["torch"].partition("+")[0] + "+cu999"}
    replace(expected, packages=packages).check_versions(allow_differences=False)


def test_patch_releases_of_python_may_differ(expected):
    assert expected.python == ".".join(platform.python_version().split(".")[:2])


@pytest.mark.parametrize(
    ("key", "error", "remedy"),
    [("teacher.checkpoint", TeacherError, "into the workers' image"), ("source.path", SourceError, "s3://, gs://")],
)
def test_a_path_that_is_missing_is_named_with_host_and_remedy(expected, tmp_path, key, error, remedy):
    lost = tmp_path / "lost"
    with pytest.raises(error) as caught:
        replace(expected, paths={**expected.paths, key: str(lost)}, host="submitter").check_paths()
    assert f"{key} {lost} does not exist on worker host {socket.gethostname()}; it was there on submitter" in str(caught.value)
    assert remedy in str(caught.value)


def test_a_cache_without_the_jobs_request_is_another_one(tmp_path):
    cache = Cache.at(str(tmp_path / "cache"))
    with pytest.raises(CacheError, match=f"the cache {tmp_path}/cache, as worker host .* sees it, is not the one"):
        check_cache(cache, request="0" * 64)
    cache.store.write(f"requests/{'0' * 64}/spec.json", b"{}")
    check_cache(cache, request="0" * 64)
    assert "Use a store that all hosts reach" in str(another_cache(cache.store))


def test_a_worker_that_refuses_is_heard_and_one_whose_store_fails_may_come_again(tmp_path):
    cache = Cache.at(str(tmp_path / "cache"))
    run = RunFolder(store=cache.store, name="20200101-000000-00000000")
    assert not has_refused(run)
    for name, kind in (("0123", "TeacherError"), ("setup-1", "CacheError")):
        cache.store.write(f"{run.path}/errors/{name}.json", json.dumps({"kind": kind}).encode())
    assert not has_refused(run)
    cache.store.write(f"{run.path}/errors/setup-2.json", json.dumps({"kind": "MismatchError"}).encode())
    assert has_refused(run)
