"""What is built and shipped to Beam's workers: the three packages and decant.py, nothing of the repository besides."""

import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipelines", "storage", "student_training")
FILES = ("setup.py", "MANIFEST.in", "pyproject.toml", "constraints.txt", "Makefile", "decant.py")
FOLDERS = (*PACKAGES, "tests", "configs", "docs")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """Build a source distribution and a wheel from a copy of the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tree / "out"
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", out, "bdist_wheel", "--dist-dir", out]
    subprocess.run(command, cwd=tree, check=True)
    return out


@pytest.fixture(scope="module")
def modules() -> set[str]:
    """Return every file that has to be installed."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {"decant.py", *(f"{package}/py.typed" for package in PACKAGES), *(str(file.relative_to(ROOT)) for file in files)}


def test_the_source_distribution_holds_the_packages_and_nothing_else(distributions, modules):
    with tarfile.open(distributions / "decant-0.1.0.tar.gz") as archive:
        names = {member.name.removeprefix("decant-0.1.0/") for member in archive if member.isfile()}
    extra = {name for name in names - modules if not name.startswith("decant.egg-info/")}
    assert modules <= names
    assert extra == {"setup.py", "setup.cfg", "MANIFEST.in", "pyproject.toml", "PKG-INFO"}


def test_the_wheel_holds_the_packages_and_the_command(distributions, modules):
    with zipfile.ZipFile(distributions / "decant-0.1.0-py3-none-any.whl") as archive:
        names = {name for name in archive.namelist() if not name.startswith("decant-0.1.0.dist-info/")}
        entry_points = archive.read("decant-0.1.0.dist-info/entry_points.txt").decode()
    assert names == modules
    assert entry_points.split() == ["[console_scripts]", "decant", "=", "decant:main"]


def test_every_requirement_is_pinned_at_a_version_it_allows(distributions):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    with zipfile.ZipFile(distributions / "decant-0.1.0-py3-none-any.whl") as archive:
        metadata = email.message_from_bytes(archive.read("decant-0.1.0.dist-info/METADATA"))
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    wrong = [str(r) for r in requirements if not r.specifier.contains(versions.get(canonicalize_name(r.name), "0.dev0"))]
    assert not wrong
    assert metadata.get_all("Provides-Extra") == ["label", "train", "s3", "gcs", "demo", "all", "dev"]


def test_storage_alone_needs_no_network_library(distributions):
    with zipfile.ZipFile(distributions / "decant-0.1.0-py3-none-any.whl") as archive:
        metadata = email.message_from_bytes(archive.read("decant-0.1.0.dist-info/METADATA"))
    required = {Requirement(text).name for text in metadata.get_all("Requires-Dist") if "extra ==" not in text}
    assert required.isdisjoint({"torch", "torchvision", "timm", "transformers", "accelerate", "apache-beam"})
