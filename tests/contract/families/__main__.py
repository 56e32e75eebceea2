"""Render every family with stock diffusers and print one table.

    python -m tests.contract.families [--traceback] [NAME …]

NAME is a family or a pipeline class; without one, all are rendered that are not slow.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import diffusers
import torch
import transformers

from tests.contract.families import FAMILIES, IMPOSSIBLE, Family, save
from tests.contract.families.stock import check


def main() -> int:
    """Print the table; the exit status tells whether every class rendered."""
    parser = argparse.ArgumentParser(prog="python -m tests.contract.families", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a family or a pipeline class")
    parser.add_argument("--traceback", action="store_true", help="print where an error was raised")
    options = parser.parse_args()
    unknown = set(options.names) - set(FAMILIES) - {name for family in FAMILIES.values() for name in family.calls}
    if unknown:
        parser.error(f"no family or pipeline class is named {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    _row("family", "class", "seconds", "output", "bytes")
    failed = rendered = 0
    for family in FAMILIES.values():
        classes = [name for name in family.calls if not options.names or {family.name, name} & set(options.names)]
        if classes and family.slow and not options.names:
            for name in classes:
                _row(family.name, name, "", "slow: rendered only by name", "")
        elif classes:
            failures = _render(family, classes, with_traceback=options.traceback)
            failed += failures
            rendered += len(classes) - failures
    if not options.names:
        for pipeline_class, reason in IMPOSSIBLE.items():
            _row("", pipeline_class, "", f"impossible: {reason}", "")
    print(f"{rendered} rendered, {failed} failed, {len(IMPOSSIBLE)} impossible")
    return int(failed > 0)


def _render(family: Family, classes: list[str], *, with_traceback: bool) -> int:
    """Print one line per class of a family, whatever its error, and return the number of failures."""
    missing = [module for module in family.requires if importlib.util.find_spec(module) is None]
    if missing:
        for pipeline_class in classes:
            _row(family.name, pipeline_class, "", f"error: needs the package {', '.join(missing)}", "")
        return len(classes)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            save(family.name, Path(folder))
        except Exception as error:  # noqa: BLE001
            _failure(family, family.pipeline_class, error, with_traceback=with_traceback)
            return len(classes)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        for pipeline_class in classes:
            try:
                rendered = check(family, pipeline_class, Path(folder))
            except Exception as error:  # noqa: BLE001
                _failure(family, pipeline_class, error, with_traceback=with_traceback)
                failed += 1
                continue
            output = f"{rendered.output.media} {'×'.join(map(str, rendered.output.size))}"
            if rendered.output.count > 1:
                output = f"{rendered.output.count} {output}"
            _row(family.name, pipeline_class, f"{rendered.seconds:.2f}", output, f"{size:,}")
    return failed


def _failure(family: Family, pipeline_class: str, error: Exception, *, with_traceback: bool) -> None:
    _row(family.name, pipeline_class, "", f"error: {type(error).__name__}: {' '.join(str(error).split())[:300]}", "")
    if with_traceback:
        traceback.print_exception(error, file=sys.stdout)


def _row(family: str, pipeline_class: str, seconds: str, output: str, size: str) -> None:
    print(f"{family:28} {pipeline_class:46} {seconds:>7} {output:24} {size:>10}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
