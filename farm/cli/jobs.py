"""``farm ls``, ``show``, ``cancel`` and ``retry``: list, show and control jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.api_types import Task
from farm.cli.choices import JobState
from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.screen import open_console, say
from farm.errors import BadInput, FarmError, Unavailable

if TYPE_CHECKING:
    from farm.client import Batch, Job

_COLOURS = {"succeeded": "green", "failed": "red", "canceled": "yellow", "running": "cyan", "dispatched": "cyan"}

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID…]", help="Ids of jobs and batches.")]
Everything = Annotated[bool, typer.Option("--all", help="All jobs that match the filters.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


State = Annotated[list[JobState] | None, typer.Option("--state", help="Only this state; may be repeated.")]
OfTask = Annotated[Task | None, typer.Option("--task", help="Only this task.")]
OfModel = Annotated[str | None, typer.Option("--model", help="Only this model.")]
OfName = Annotated[str | None, typer.Option("--custom-id", help="Only jobs with this custom_id.")]
OfBatch = Annotated[str | None, typer.Option("--batch", metavar="ID", help="Only jobs of this batch.")]


def ls(
    state: State = None,
    task: OfTask = None,
    model: OfModel = None,
    custom_id: OfName = None,
    batch: OfBatch = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List jobs, newest first."""
    with connect(url, api_key, data_dir) as farm:
        jobs = list(farm.list(limit=limit, state=state, task=task, model=model, custom_id=custom_id, batch_id=batch))
    if as_json:
        print_json([job.raw for job in jobs])
    elif jobs:
        _print_table(jobs)
    else:
        say("no jobs", file=sys.stderr)


def show(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Show one job: its parameters, progress and outputs."""
    with connect(url, api_key, data_dir) as farm:
        job = farm.get(job_id)
    if as_json:
        print_json(job.raw)
    else:
        _print_job(job)


def cancel(
    job_ids: Ids = None,
    everything: Everything = False,
    state: State = None,
    task: OfTask = None,
    model: OfModel = None,
    custom_id: OfName = None,
    batch: OfBatch = None,
    yes: Yes = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Cancel jobs, or all jobs of a batch: at once while they wait, at the next denoising step while they run.

    Give ids, or --all: all jobs that have not ended and match the other options.
    """
    wanted = _wanted(job_ids, everything, state=state, task=task, model=model, custom_id=custom_id, batch_id=batch)
    with connect(url, api_key, data_dir) as farm:
        if wanted is None:
            _each(job_ids or [], _either(farm.cancel, farm.cancel_batch), _canceled, as_json=as_json)
            return
        _sure("cancel", farm.cancel_jobs(dry_run=True, **wanted).matched, yes=yes)
        done = farm.cancel_jobs(**wanted)
        canceled, stopping = done.canceled, done.stopping
        while not done.complete:
            done = farm.cancel_jobs(**wanted)
            canceled, stopping = canceled + done.canceled, stopping + done.stopping
    if as_json:
        print_json(done.raw | {"canceled": canceled, "stopping": stopping})
    else:
        say(f"{canceled:,} canceled" + (f", {stopping:,} stop at their next step" if stopping else ""))


def retry(
    job_ids: Ids = None,
    everything: Everything = False,
    state: State = None,
    task: OfTask = None,
    model: OfModel = None,
    custom_id: OfName = None,
    batch: OfBatch = None,
    error_code: Annotated[
        str | None, typer.Option("--error-code", help="Only jobs that failed with this error code.")
    ] = None,
    with_dependents: Annotated[
        bool, typer.Option("--with-dependents", help="Also the jobs that failed for want of a job's outputs.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Submit failed or canceled jobs again, as new jobs; or those of a batch, as a new batch.

    Give ids, or --all: all jobs that failed or were canceled, were not retried since, and match the other options.
    """
    wanted = _wanted(
        job_ids,
        everything,
        state=state,
        task=task,
        model=model,
        custom_id=custom_id,
        batch_id=batch,
        error_code=error_code,
    )
    with connect(url, api_key, data_dir) as farm:
        if wanted is None:
            again = _either(partial(farm.retry, with_dependents=with_dependents), farm.retry_batch)
            _each(job_ids or [], again, lambda one: f"{one.id}  retries {one.retry_of}", as_json=as_json)
            return
        _sure("retry", farm.retry_jobs(dry_run=True, **wanted).matched, yes=yes)
        done = farm.retry_jobs(**wanted)
    if as_json:
        print_json(done.raw)
    else:
        say(f"{done.submitted:,} submitted again")


def _wanted(
    job_ids: list[str] | None, everything: bool, *, state: list[JobState] | None, **filters: str | None
) -> dict[str, Any] | None:
    """The filter, or None if ids are given."""
    given: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    if state:
        given["state"] = state
    if everything and not job_ids:
        return given or {"everything": True}
    if everything or given:
        raise BadInput.of("--all", None, "give job ids, or --all with filters, not both")
    if not job_ids:
        raise BadInput.of("ID", None, "give ids of jobs or batches, or --all")
    return None


def _sure(verb: str, count: int, *, yes: bool) -> None:
    """Print how many jobs are affected, and ask for confirmation on a terminal."""
    if not count:
        say(f"no job to {verb}", file=sys.stderr)
        raise typer.Exit
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInput.of("--all", None, f"would {verb} {count:,} jobs: add --yes")
    typer.confirm(f"{verb} {count:,} jobs?", abort=True, err=True)


def _canceled(one: Job | Batch) -> str:
    if one.over:
        return f"{one.id}  canceled"
    return (
        f"{one.id}  {'canceling: none of its jobs starts any more' if _is_batch(one.id) else 'stops at its next step'}"
    )


def _is_batch(name: str) -> bool:
    return name.startswith("bat_")


def _either(job: Callable[[str], Job], batch: Callable[[str], Batch]) -> Callable[[str], Job | Batch]:
    """What to do to an id, by its kind."""
    return lambda name: batch(name) if _is_batch(name) else job(name)


def _each(
    job_ids: list[str], act: Callable[[str], Job | Batch], line: Callable[[Job | Batch], str], *, as_json: bool
) -> None:
    """Apply the action to every job; exit with 1 if some, with 2 if all were refused."""
    done: list[dict[str, Any]] = []
    refused = 0
    for job_id in job_ids:
        try:
            job = act(job_id)
        except Unavailable:
            raise
        except FarmError as error:
            refused += 1
            say(f"farm: {job_id}: {error}", file=sys.stderr)
            continue
        done.append(job.raw)
        if not as_json:
            say(line(job))
    if as_json:
        print_json(done)
    if refused:
        raise typer.Exit(1 if done else 2)


def _print_table(jobs: list[Job]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    # Ids must stay whole to be copied; the prompt is what gives way on a narrow terminal.
    table.add_column("id", no_wrap=True, min_width=36)
    for heading in ("state", "task", "model"):
        table.add_column(heading, no_wrap=True)
    table.add_column("age", no_wrap=True, justify="right")
    table.add_column("s", no_wrap=True, justify="right")
    table.add_column("prompt", no_wrap=True, overflow="ellipsis", ratio=1)
    for job in jobs:
        state = job.state
        if job.state == "running" and job.progress:
            state += f" {job.progress.step}/{job.progress.steps}"
        table.add_row(
            job.id,
            Text(state, style=_COLOURS.get(job.state, "")),
            job.task,
            job.model,
            age(job.created_at),
            _seconds((job.raw.get("timings") or {}).get("total_seconds")),
            Text(str(job.parameters.get("prompt", ""))),
        )
    console = open_console()
    # In a pipe there is no edge to fit to.
    (console if console.is_terminal else open_console(width=200)).print(table)


def _print_job(job: Job) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")

    def row(name: str, value: object, style: str = "") -> None:
        if value not in (None, "", {}, []):
            grid.add_row(name, Text(str(value), style=style))

    row("job", job.id)
    row("state", job.state, _COLOURS.get(job.state, ""))
    if job.progress and not job.over:
        row("progress", f"step {job.progress.step} of {job.progress.steps}")
    row("error", job.error and f"{job.error.message} ({job.error.code})", "red")
    for warning in job.warnings:
        row("warning", warning, "yellow")
    for name, value in job.parameters.items():
        row(name, value)
    row("priority", job.priority)
    row("worker", job.worker)
    row("attempts", f"{job.attempts} of {job.raw.get('max_attempts', '?')}")
    row("steps_resumed", f"{job.steps_resumed} of an earlier attempt" if job.steps_resumed else None)
    row("preemptions", job.preemptions or None)
    row("custom_id", job.custom_id)
    for name, value in job.metadata.items():
        row(f"metadata.{name}", value)
    row("retry_of", job.retry_of)
    row("depends_on", "\n".join(job.depends_on))
    row("dependents", job.dependents or None)
    for name in ("created_at", "started_at", "finished_at"):
        row(name, job.raw.get(name))
    for name, value in (job.raw.get("timings") or {}).items():
        row(name, _seconds(value))
    row("waits", job.raw.get("waiting_reason"))
    row("position", job.raw.get("position"))
    row("left", job.raw.get("eta_seconds") and f"about {job.raw['eta_seconds']:.0f} s")
    for name, value in (job.raw.get("recipe") or {}).items():
        row(f"recipe.{name}", value)
    for output in job.outputs:
        size = f"{output.width}x{output.height}, {output.size / 1024:.0f} KiB, {output.media_type}"
        row(f"output {output.index}", f"seed {output.seed}, {size}\nsha256 {output.sha256}\n{output.url}")
    open_console(soft_wrap=True).print(grid)


def age(then: datetime | None) -> str:
    """How long ago that was: ``5 s``, ``3 min``, ``2 h``, ``4 d``."""
    if then is None:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - then).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
