"""Machines that give out while a student trains: what is said of it, and that nothing committed is lost."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import contextmanager

import pytest
import torch
from torch.utils.data import get_worker_info

from storage.errors import ConfigError
from student_training.failures import ResourceError
from student_training.output_folder import OutputError, try_output
from student_training.trainer import train
from tests.student_training.support import VIEW, TeachingStream, make_config, source_stream, write_pictures
from tests.student_training.test_resume import SETTINGS, StoppingStream, assert_same_student, figures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), per_class=14)


def run(pictures, folder, stream=None, **changes):
    stream = stream or StoppingStream(source_stream(pictures))
    return train(
        make_config(pictures, folder, evaluation=True, **{**SETTINGS, **changes}), stream=stream, view=VIEW, num_classes=3
    )


@contextmanager
def largest_file(num_bytes):
    """No file may grow beyond; Python leaves the signal of that aside, so that writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FillingStream(StoppingStream):
    """Lets the disk be full from a step on."""

    def read(self, **arguments):
        if self.reads == 5:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        return super().read(**arguments)


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(pictures, tmp_path):
    class Untouched(TeachingStream):
        def identity(self):
            raise AssertionError("the source was indexed")

    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"training.output is '.*file/run', which cannot be written to \(NotADirectoryError"):
        run(pictures, tmp_path / "file" / "run", Untouched(source_stream(pictures)))
    with largest_file(0), pytest.raises(ConfigError, match=r"cannot be written to \(OSError: File too large\)"):
        try_output(tmp_path, unless="result.json")
    (tmp_path / "result.json").write_text("")
    with largest_file(0):
        try_output(tmp_path, unless="result.json")


def test_a_run_whose_disk_was_full_goes_on_as_if_nothing_had_happened(pictures, tmp_path):
    run(pictures, tmp_path / "straight")
    folder = tmp_path / "full"
    with (
        largest_file(resource.getrlimit(resource.RLIMIT_FSIZE)[0]),
        pytest.raises(
            OutputError, match=r"the checkpoint of step 6 cannot be written to .*\(OSError: File too large\); make room"
        ),
    ):
        run(pictures, folder, FillingStream(source_stream(pictures)))
    assert not list((folder / "checkpoints").glob("*.tmp"))
    assert run(pictures, folder).resumed_from_step == 4
    assert_same_student(folder, tmp_path / "straight")
    assert figures(folder) == figures(tmp_path / "straight")


def test_a_student_that_cannot_be_written_is_written_by_a_rerun(pictures, tmp_path):
    run(pictures, tmp_path, epochs=1)
    written = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "result.json").unlink()
    with largest_file(10_000), pytest.raises(OutputError, match=r"the student cannot be written to .*File too large"):
        run(pictures, tmp_path, epochs=1)
    assert run(pictures, tmp_path, epochs=1).resumed_from_step == 5
    assert (tmp_path / "model.safetensors").read_bytes() == written


def test_a_loader_process_that_is_killed_is_told_of(pictures, tmp_path):
    class Killed(TeachingStream):
        def read(self, **arguments):
            if get_worker_info() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(**arguments)

    with pytest.raises(ResourceError, match=r"a loader process died .* lower training.loader_workers \(it is 2\)"):
        run(pictures, tmp_path, Killed(source_stream(pictures)), loader_workers=2)


def test_a_full_gpu_names_what_to_lower(pictures, tmp_path):
    def teacher(views):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    config = make_config(pictures, tmp_path, targets={"kind": "live"}, epochs=1)
    with pytest.raises(ResourceError, match=r"no memory left \(CUDA out .*\)\. Lower training.batch_size \(now 8\).*checkpoint"):
        train(config, stream=source_stream(pictures, num_views=1), view=VIEW, num_classes=3, teacher=teacher)
