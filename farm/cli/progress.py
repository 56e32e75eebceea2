"""Progress of jobs: a bar on a terminal, lines elsewhere; on stderr, because stdout is for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from farm.cli.screen import open_console

if TYPE_CHECKING:
    from farm.client import Job

#: Between two lines about the same job's steps, in seconds: a log must stay readable.
_LINE_SECONDS = 5.0


class Watch(Protocol):
    """Called with every change of a job."""

    def __call__(self, job: Job) -> None:
        """The job as it is now."""


def _id(job: Job) -> str:
    return job.id


@contextmanager
def watching(name: Callable[[Job], str] | None = None) -> Iterator[Watch]:
    """Show the progress of any number of jobs while the block runs; thread-safe.

    ``name``: what to call a job on screen. With it the bars stay, as the record of what was done.
    """
    if not sys.stderr.isatty():
        yield _Lines(name or _id)
        return
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    bars = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}", markup=True),
        console=open_console(stderr=True),
        transient=name is None,
    )
    known: dict[str, TaskID] = {}

    def show(job: Job) -> None:
        if job.id not in known:
            known[job.id] = bars.add_task(job.state, total=None, note="")
        steps = job.progress
        bars.update(
            known[job.id],
            description=job.state,
            completed=steps.step if steps else 0,
            total=steps.steps if steps else None,
            note=escape(name(job) if name else job.worker or ""),
        )
        if job.over:
            bars.stop_task(known[job.id])

    with bars:
        yield show


class _Lines:
    """One line for each change of state, and now and then one about the steps."""

    def __init__(self, name: Callable[[Job], str]) -> None:
        self._name = name
        self._states: dict[str, str] = {}
        self._at: dict[str, float] = {}

    def __call__(self, job: Job) -> None:
        now = time.monotonic()
        if self._states.get(job.id) != job.state:
            where = f" on {job.worker}" if job.worker and not job.over else ""
            print(f"{self._name(job)}: {job.state}{where}", file=sys.stderr)
            self._states[job.id], self._at[job.id] = job.state, now
        elif job.progress and now - self._at[job.id] >= _LINE_SECONDS:
            print(f"{self._name(job)}: step {job.progress.step} of {job.progress.steps}", file=sys.stderr)
            self._at[job.id] = now
