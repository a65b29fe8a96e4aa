"""Write the golden files of the current format version: `python -m tests.golden`."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from tests.golden.writer import VERSION, write_golden


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument(
        "--force", action="store_true", help="replace files that exist: only while no release has written their version"
    )
    arguments = parser.parse_args()
    folder = Path(__file__).parent / VERSION
    if folder.exists() and not arguments.force:
        sys.stderr.write(
            f"{folder} exists. Caches of this version are out there and these files stand for them: whatever decodes to something "
            "else now is a fault in the code. A new format needs a new version, in storage and in tests/golden/writer.py; --force "
            "replaces the files.\n"
        )
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_golden(folder)
    print(f"wrote {sum(path.is_file() for path in folder.rglob('*'))} files to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
