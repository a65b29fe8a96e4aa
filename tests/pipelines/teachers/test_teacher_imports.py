"""Naming teachers costs nothing: frameworks come with the first loaded teacher."""

from __future__ import annotations

import subprocess
import sys


def test_package_imports_no_framework() -> None:
    program = (
        "import sys, pipelines.teachers, storage.views\n"
        "print(*sorted({'torch', 'timm', 'transformers', 'torchvision', 'apache_beam'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
