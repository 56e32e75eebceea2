"""Waiting for jobs in front of a person: a bar on a terminal, lines elsewhere; on stderr, as stdout is for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from farm.client import Job

#: Between two lines about the same job's steps, in seconds: a log must stay readable.
_LINE_SECONDS = 5.0


class Watch(Protocol):
    """Hears of every change of a job."""

    def __call__(self, job: Job) -> None:
        """The job as it is now."""


@contextmanager
def watching() -> Iterator[Watch]:
    """What shows the progress of one job after another while the block runs."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    bars = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[worker]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    known: dict[str, TaskID] = {}

    def show(job: Job) -> None:
        if job.id not in known:
            known[job.id] = bars.add_task(job.state, total=None, worker="")
        steps = job.progress
        bars.update(
            known[job.id],
            description=job.state,
            completed=steps.step if steps else 0,
            total=steps.steps if steps else None,
            worker=job.worker or "",
        )

    with bars:
        yield show


class _Lines:
    """One line for each change of state, and now and then one about the steps."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._at: dict[str, float] = {}

    def __call__(self, job: Job) -> None:
        now = time.monotonic()
        if self._states.get(job.id) != job.state:
            where = f" on {job.worker}" if job.worker and not job.over else ""
            print(f"{job.id} {job.state}{where}", file=sys.stderr)
            self._states[job.id], self._at[job.id] = job.state, now
        elif job.progress and now - self._at[job.id] >= _LINE_SECONDS:
            print(f"{job.id} step {job.progress.step} of {job.progress.steps}", file=sys.stderr)
            self._at[job.id] = now
