"""What Beam ships to a remote worker with `--setup_file` is all the worker needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from apache_beam.internal import pickler
from apache_beam.runners.portability.stager import Stager

from pipelines.engine import pipeline_options
from pipelines.request import resolve_request
from pipelines.teacher_memo import TeacherFacts
from pipelines.transforms import LabelUnits, shared_teacher
from storage.cache import Cache
from tests.pipelines.support import ROOT, config_of, experiment, folder_source, timm_teacher

FILES = ("setup.py", "MANIFEST.in", "pyproject.toml", "decant.py")
PACKAGES = ("pipelines", "storage", "student_training")

IN_THE_WORKER = """
import importlib, os, pathlib, sys

site = pathlib.Path(sys.argv[1]).resolve()
sys.path.insert(0, str(site))
for name in ("pipelines.transforms", "storage.label_set", "student_training.trainer", "decant"):
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).resolve().is_relative_to(site), module.__file__

from apache_beam.internal import pickler
from pipelines.task_files import task_from_json

label_units = pickler.loads(pathlib.Path(sys.argv[2]).read_bytes())
label_units.setup()
print("ready", label_units._labeller.teacher.spec.num_classes)
"""


@pytest.mark.integration
def test_a_worker_that_has_only_the_shipped_package_can_label(tmp_path, monkeypatch, pictures, checkpoint):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tree)
    staging = tmp_path / "staging"
    staging.mkdir()
    resources = Stager.create_job_resources(
        pipeline_options(["--setup_file=./setup.py"]), str(staging), log_submission_env_dependencies=False
    )
    assert any(b"workflow.tar.gz" in resource.role_payload for resource in resources)
    (package,) = staging.glob("*.tar.gz")

    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", site, package], check=True, cwd=tmp_path)
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} - {"bin", "__pycache__"} == {
        *PACKAGES,
        "decant.py",
    }

    config = config_of(experiment(cache=tmp_path / "cache", source=folder_source(pictures), teacher=timm_teacher(checkpoint)))
    request = resolve_request(config, facts=TeacherFacts.of(shared_teacher(config.teacher)))
    cache = Cache.at(config.cache)
    cache.add_request(request)
    label_units = LabelUnits(
        cache=cache,
        run="runs/r",
        requests={request.fingerprint(): request},
        teacher=config.teacher,
        source=config.source,
        generation=config.generation,
    )
    (tmp_path / "function").write_bytes(pickler.dumps(label_units))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(IN_THE_WORKER), site, tmp_path / "function"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ready 3\n"
