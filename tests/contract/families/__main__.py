"""Render every family with stock diffusers and as jobs of the farm, and print one table.

    python -m tests.contract.families [--stock] [--traceback] [--write] [NAME …]

NAME is a family or a pipeline class; without one, all are rendered that are not slow.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from farm.pipelines.catalogue import catalogue
from farm.tasks import TASKS
from tests.contract.families import FAMILIES, IMPOSSIBLE, Family, farm, save, stock
from workers import numerics, pipelines

_HEAD: Final = """# Pipeline families

Written by `make families`: tiny models with random weights, each rendered with stock diffusers {version} and as jobs of
the farm. {rendered} of {tried} classes render, which means: a job alone has the bytes of the stock pipeline called with
the same arguments, an exact job has the same bytes beside other jobs, its size and length are those that came out, a
cancel ends it within two denoiser calls, a parameter of its own has its effect, and one that it lacks is refused. Every
other class has the reason in its place, which `farm models check` gives, too. [Pipeline classes](pipeline-classes.md)
lists what each class takes.

*shares*: jobs of the class share forwards with each other. *tried*: the parameter of its own whose effect was compared.

| family | class | task | result | tried |
|---|---|---|---|---|
"""
TABLE: Final = Path(__file__).parents[3] / "docs" / "pipeline-families.md"


@dataclass(frozen=True)
class Line:
    """The result of one class of one family."""

    family: str
    pipeline_class: str
    task: str
    result: str
    own: str = ""  #: the parameter of its own that was tried
    failed: bool = False
    seconds: float = 0.0

    @property
    def row(self) -> str:
        """Of the table."""
        family = self.family or "–"
        return f"| {family} | {self.pipeline_class} | {self.task} | {self.result} | {self.own} |\n"


def main() -> int:
    """Print the table; the exit status tells whether every class rendered."""
    parser = argparse.ArgumentParser(prog="python -m tests.contract.families", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a family or a pipeline class")
    parser.add_argument("--stock", action="store_true", help="with stock diffusers only, each input varied")
    parser.add_argument("--traceback", action="store_true", help="print where an error was raised")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}, too; not with a NAME")
    options = parser.parse_args()
    unknown = set(options.names) - set(FAMILIES) - {name for family in FAMILIES.values() for name in family.calls}
    if options.write and (options.names or options.stock):
        parser.error("--write needs all families, rendered by the farm")
    if unknown:
        parser.error(f"no family or pipeline class is named {', '.join(sorted(unknown))}")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    pipelines.silence_libraries()
    logging.disable(logging.NOTSET)
    numerics.make_deterministic(1)
    lines = []
    for line in _lines(options.names, only_stock=options.stock, with_traceback=options.traceback):
        lines.append(line)
        print(f"{line.family:28} {line.pipeline_class:46} {line.seconds:6.1f} {line.task:22} {line.result}", flush=True)
    failed = sum(line.failed for line in lines)
    print(f"{len(lines) - failed} of {len(lines)} as they should be, {failed} failed, {len(IMPOSSIBLE)} impossible")
    if options.write:
        tried = {line.pipeline_class for line in lines if line.family}
        rendered = {line.pipeline_class for line in lines if line.task and not line.failed}
        head = _HEAD.format(version=catalogue().version, rendered=len(rendered), tried=len(tried))
        TABLE.write_text(head + "".join(line.row for line in lines), "utf-8")
    return int(failed > 0)


def _lines(names: list[str], *, only_stock: bool, with_traceback: bool) -> Iterator[Line]:
    for family in FAMILIES.values():
        classes = [name for name in family.calls if not names or {family.name, name} & set(names)]
        missing = [module for module in family.requires if importlib.util.find_spec(module) is None]
        if classes and missing:
            reason = f"needs the package {', '.join(missing)}, which is not installed"
            yield from (Line(family.name, name, "", reason) for name in classes)
        elif classes and family.slow and not names:
            for name in classes:
                absent = set(catalogue().pipeline(name).tasks).isdisjoint(TASKS)
                yield Line(family.name, name, "", _refusal(name) if absent else "slow: rendered only by name")
        elif classes:
            yield from _render(family, classes, only_stock=only_stock, with_traceback=with_traceback)
    if not names:
        yield from (Line("", name, "", f"not built here: {reason}") for name, reason in IMPOSSIBLE.items())


def _render(family: Family, classes: list[str], *, only_stock: bool, with_traceback: bool) -> Iterator[Line]:
    """One line for each class of a family, whatever its error."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        for pipeline_class in classes:
            started = time.process_time()
            task, own, failed = "", "", False
            try:
                if not folder.exists():
                    save(family.name, folder)
                task, result, own = _result(family, pipeline_class, folder, only_stock=only_stock)
            except Exception as error:  # noqa: BLE001
                result, failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", True
                if with_traceback:
                    traceback.print_exception(error, file=sys.stdout)
            yield Line(family.name, pipeline_class, task, result, own, failed, time.process_time() - started)


def _result(family: Family, pipeline_class: str, folder: Path, *, only_stock: bool) -> tuple[str, str, str]:
    """The task, what was found, and the parameter of its own that was tried."""
    if only_stock:
        output = stock.check(family, pipeline_class, folder).output
        return "", f"{output.count} {output.media} {'×'.join(map(str, output.size))}", ""
    if refusal := _refusal(pipeline_class):
        return "", refusal, ""
    report = farm.check(family, pipeline_class, folder)
    left_out = f"; a job cannot give {', '.join(report.left_out)}" if report.left_out else ""
    return report.task, f"{report.sharing}{left_out}", report.own


def _refusal(pipeline_class: str) -> str:
    """Why the farm does not render with a class; empty where it does."""
    spec = catalogue().pipeline(pipeline_class)
    if not spec.tasks:
        return f"refused: {spec.no_task}"
    return "" if set(spec.tasks) & set(TASKS) else f"refused: the farm has no task {' or '.join(spec.tasks)}"


if __name__ == "__main__":
    sys.exit(main())
