"""``python -m workers.catalogue``: write the catalogue, or compare it with the installed diffusers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

import farm.pipelines
from farm.pipelines.catalogue import FILE
from workers.catalogue.generate import catalogue_text, table_text

DATA: Final = Path(farm.pipelines.__file__).parent / FILE
TABLE: Final = Path(farm.pipelines.__file__).parents[2] / "docs" / "pipeline-classes.md"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m workers.catalogue", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file would change")
    arguments = parser.parse_args()
    text = catalogue_text()
    changed = [
        path
        for path, content in ((DATA, text), (TABLE, table_text(text)))
        if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    for path, content in ((DATA, text), (TABLE, table_text(text))):
        if path in changed and not arguments.check:
            path.write_text(content, encoding="utf-8")
    names = ", ".join(path.name for path in changed)
    print(f"changed: {names}" if changed else "no change")  # noqa: T201 — a command's answer
    return 1 if changed and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
