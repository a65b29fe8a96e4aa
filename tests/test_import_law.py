"""The import law: pipelines -> storage <- student_training, and nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipelines", "storage", "student_training")
IMPORT_ALL = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
def fail(name):
    raise
path = getattr(package, "__path__", [])
names = [module.name for module in pkgutil.walk_packages(path, f"{package.__name__}.", onerror=fail)]
for name in names:
    importlib.import_module(name)
print(json.dumps({"imported": names, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def import_all(package: str, *, folder: Path) -> dict[str, list[str]]:
    """Import a package and every module below it in a fresh interpreter; return what was imported and what that loaded."""
    command = [sys.executable, "-c", IMPORT_ALL, package]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        (
            "storage",
            {"torch", "torchvision", "timm", "transformers", "accelerate", "apache_beam", "pipelines", "student_training"},
        ),
        ("student_training", {"apache_beam", "pipelines"}),
        ("pipelines", {"student_training"}),
    ],
)
def test_importing_every_module_loads_nothing_forbidden(package, forbidden):
    result = import_all(package, folder=ROOT)
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / package).rglob("*.py")]
    modules = {".".join(file.parts).removesuffix(".__init__") for file in files}
    assert {package, *result["imported"]} == modules
    assert forbidden.isdisjoint(result["loaded"])


def test_the_command_line_loads_what_a_command_needs_only_when_it_runs():
    loaded = import_all("decant", folder=ROOT)["loaded"]
    assert {"torch", "timm", "transformers", "accelerate", "apache_beam"}.isdisjoint(loaded)


def test_a_forbidden_import_deep_inside_is_seen(tmp_path):
    module = tmp_path / "leaky" / "deep" / "module.py"
    module.parent.mkdir(parents=True)
    for folder in (module.parent, module.parent.parent):
        (folder / "__init__.py").touch()
    module.write_text("import wave\n", encoding="utf-8")
    assert "wave" in import_all("leaky", folder=tmp_path)["loaded"]


@pytest.mark.parametrize(
    ("package", "statement", "broken"),
    [
        ("storage", "import torch", "storage stands alone BROKEN"),
        ("storage", "def lazily():\n    from apache_beam import Pipeline", "storage stands alone BROKEN"),
        ("storage", "from student_training import losses", "storage stands alone BROKEN"),
        ("student_training", "import pipelines", "students need neither pipelines nor Beam BROKEN"),
        ("pipelines", "import student_training", "pipelines know no students BROKEN"),
    ],
)
def test_the_linter_refuses_what_breaks_the_law(tmp_path, package, statement, broken):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "student_training" / "losses.py").touch()
    linter = Path(sys.executable).with_name("lint-imports")
    command = [linter, "--no-cache"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / package / "leak.py").write_text(f"{statement}\n", encoding="utf-8")
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert broken in result.stdout
