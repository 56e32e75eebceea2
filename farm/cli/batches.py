"""``farm submit``, ``watch``, ``get`` and ``batches``: many jobs at once, from a table to a directory of images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from farm.api_types import OutputFormat, Priority, Task
from farm.cli import output_files, sweeps
from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.jobs import age
from farm.cli.parameter_options import with_parameters
from farm.cli.render import (
    COUNT,
    Deadline,
    Exact,
    Guidance,
    Loras,
    Negative,
    NotBefore,
    Params,
    Preview,
    SchedulerOptions,
    Steps,
    size_of,
    values_of,
)
from farm.cli.screen import open_console, say
from farm.errors import BadInput, FarmError

if TYPE_CHECKING:
    from farm.client import ApiError, Batch, DryRun, Farm, Output, Result

#: What a name template may hold, and how its default looks.
_NAME_FIELDS = ("seq", "id", "custom_id", "name", "index", "seed", "suffix")
_NAME = "{seq:06d}-{name}-{index}{suffix}"
_SHOWN = 20  #: refused lines that are printed
_LINE_SECONDS = 10.0  #: between two lines about a batch, where there is no terminal
_AT_ONCE = 4  #: downloads
_AHEAD = 64  #: downloads that wait for their turn


BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="The batch's id.")]


def _submit(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE|-", help="JSON lines or CSV, one job per line; - is stdin.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="Instead of a file: one job for each combination of values, such as guidance_scale=1,2,4, seed=1..8, "
            'size=64x64,128x128 or prompt=["a ball", "a cube"]; may be repeated.',
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Jobs for each combination of a sweep.")] = 1,
    seeds: Annotated[
        Literal["consecutive", "random"] | None,
        typer.Option(help="Seeds of the repeats: the same for each combination (the default), or random."),
    ] = None,
    file_format: Annotated[
        Literal["jsonl", "csv"] | None, typer.Option("--format", help="Default: from the file's extension.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, count and estimate; submit nothing.")] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Submit the valid lines even if others are refused.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Wait until the batch has ended.")] = False,
    name: Annotated[str | None, typer.Option(help="A name for the batch.")] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same file and key give the same batch.")] = None,
    task: Annotated[Task, typer.Option(help="Default for lines without one.")] = "text-to-image",
    model: Annotated[str | None, typer.Option(help="Default for lines without one, as are all options below.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to render.")] = None,
    negative: Negative = None,
    steps: Steps = None,
    guidance: Guidance = None,
    lora: Loras = None,
    exact: Exact = None,
    preview: Preview = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, dpm-solver, …, or a class of diffusers.")] = None,
    scheduler_option: SchedulerOptions = None,
    param: Params = None,
    seed: Annotated[int | None, typer.Option(help="Default: random for each job.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels, multiples of 8.")] = None,
    n: Annotated[int | None, typer.Option(*COUNT, help="Outputs per job.")] = None,
    output_format: Annotated[
        OutputFormat | None, typer.Option("--output-format", help="Of the task's media: png, mp4, wav…")
    ] = None,
    priority: Annotated[Priority | None, typer.Option(help="Default: bulk.")] = None,
    not_before: NotBefore = None,
    deadline: Deadline = None,
    numerics: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS|one", help="Render only in this numerics class; one: all in that of the first job."
        ),
    ] = None,
    webhook: Annotated[str | None, typer.Option(help="A URL that receives the batch's events.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Submit a file of jobs, or a sweep, as one batch: all of them, or none if a line is wrong."""
    from farm.client import ApiError

    if (file is None) == (not sweep):
        raise BadInput.of("FILE", file, "give either a file of jobs, or --sweep")
    width, height = size_of(size)
    options: dict[str, Any] = {
        "task": task,
        "model": model,
        "prompt": prompt,
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "loras": ",".join(lora) if lora else None,
        "exact": exact,
        "preview": preview,
        "scheduler": scheduler,
        "scheduler_options": _as_json(values_of("scheduler-option", scheduler_option)),
        "parameters": _as_json(values_of("param", param)),
        "seed": seed,
        "width": width,
        "height": height,
        "num_outputs": n,
        "output_format": output_format,
        "priority": priority,
        "not_before": not_before,
        "deadline": deadline,
        "numerics": numerics,
        "webhook": webhook,
        **{name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in more.items()},
    }
    on_error: Literal["skip"] | None = "skip" if skip_invalid else None
    check: Callable[..., DryRun]
    send: Callable[..., Batch]
    with connect(url, api_key, data_dir) as farm:
        if file is None:
            swept: dict[str, Any] = {"values": sweeps.groups(sweep or []), "repeats": repeats, "seeds": seeds}
            check, send = partial(farm.check_sweep, **swept), partial(farm.sweep, **swept, on_error=on_error)
        else:
            source: Any = sys.stdin.buffer if file == "-" else Path(file)
            given: dict[str, Any] = {"source": source, "content_type": _content_type(file, file_format)}
            check = partial(farm.check_batch, **given)
            send = partial(farm.submit_batch, **given, on_error=on_error)
        if dry_run:
            found = check(**options)
            if not as_json:
                _hint(farm, found.same_as)
            _print_dry_run(found, as_json=as_json)
            return
        try:
            batch = send(name=name, idempotency_key=key, **options)
        except ApiError as error:
            if not any(one.line for one in error.errors):
                raise
            _print_refused(error)
            raise typer.Exit(2) from None
        if not as_json:
            say(batch.id)
            skipped = f"; {batch.skipped:,} refused: `farm get {batch.id}` lists them" if batch.skipped else ""
            say(f"{batch.total:,} jobs queued{skipped}", file=sys.stderr)
            _hint(farm, batch.same_as)
        if watch:
            batch = _wait(farm, batch)
        if as_json:
            print_json(batch.raw)
        if watch:
            _exit(batch)


#: The parameters that `farm submit` has options of its own for, or that cannot be the same for all jobs.
_OWN: Final = frozenset(
    {
        *("task", "model", "prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "loras", "exact"),
        *("preview", "scheduler", "scheduler_options", "parameters", "seed", "width", "height", "num_outputs"),
        *("output_format", "priority", "not_before", "deadline", "numerics", "webhook", "custom_id", "metadata"),
        "inputs",
    }
)
submit = with_parameters(_submit, _OWN)


def _as_json(values: dict[str, Any] | None) -> str | None:
    return None if values is None else json.dumps(values)


def watch(
    batch_id: BatchArgument,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Follow a batch until it ends: finished and failed jobs, speed, time left."""
    with connect(url, api_key, data_dir) as farm:
        batch = _wait(farm, farm.batch(batch_id))
    if as_json:
        print_json(batch.raw)
    _exit(batch)


def pause(
    batch_id: BatchArgument,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Pause a batch: none of its jobs is dispatched; running jobs finish."""
    with connect(url, api_key, data_dir) as farm:
        _steered(farm.pause_batch(batch_id), as_json=as_json)


def resume(
    batch_id: BatchArgument,
    priority: Annotated[Priority | None, typer.Option(help="Also set this priority on all its jobs.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Resume a paused batch, at its old place in the queue."""
    with connect(url, api_key, data_dir) as farm:
        batch = farm.resume_batch(batch_id)
        if priority is not None:
            batch = farm.edit_batch(batch_id, priority=priority)
        _steered(batch, as_json=as_json)


def delete(
    batch_id: Annotated[str, typer.Argument(metavar="ID", help="The id of a batch, or of a job of no batch.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Delete a batch that has ended, with its jobs and their outputs; or one job of no batch."""
    with connect(url, api_key, data_dir) as farm:
        if batch_id.startswith("job_"):
            job = farm.get(batch_id)
            if not dry_run:
                if not yes and not typer.confirm(f"delete {job.id} and its {len(job.outputs)} outputs?", err=True):
                    raise typer.Exit(1)
                farm.delete_job(job.id)
            say(f"{job.id}  {'would lose' if dry_run else 'deleted with'} {len(job.outputs)} outputs")
            return
        found = farm.delete_batch(batch_id, dry_run=True)
        text = f"{found.jobs:,} jobs and {found.outputs:,} images ({found.bytes / 2**20:.1f} MiB)"
        if not dry_run:
            if not yes and not typer.confirm(f"delete {text} of {batch_id}?", err=True):
                raise typer.Exit(1)
            found = farm.delete_batch(batch_id)
    if as_json:
        print_json({**asdict(found)})
    else:
        say(f"{batch_id}  {'would lose' if dry_run else 'deleted:'} {text}")


def _steered(batch: Batch, *, as_json: bool) -> None:
    if as_json:
        print_json(batch.raw)
    else:
        say(f"{batch.id}  {batch.state}, {batch.counts['queued']:,} jobs wait")


def batches(
    limit: Annotated[int, typer.Option(min=1, help="Maximum number.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List batches, newest first."""
    with connect(url, api_key, data_dir) as farm:
        found = list(farm.batches(limit=limit))
    if as_json:
        print_json([batch.raw for batch in found])
    elif found:
        _print_table(found)
    else:
        say("no batches", file=sys.stderr)


def get(
    batch_id: BatchArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The directory; created if it does not exist.")
    ] = Path(),
    template: Annotated[
        str, typer.Option("--name", help=f"How files are named, from {', '.join(_NAME_FIELDS)}.")
    ] = _NAME,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Download the images that a batch has so far. Run it again to continue: complete files are skipped.

    Exits with 1 if an image could not be downloaded or a job failed.
    """
    _check_template(template)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput.of("output", str(output), f"{output} cannot be made: {error.strerror}") from error
    new, here, bytes_, lost, failed = 0, 0, 0, 0, 0
    with connect(url, api_key, data_dir) as farm:
        for wrong in farm.batch_errors(batch_id):
            say(f"farm: {_sentence(wrong)}", file=sys.stderr)
            failed += 1
        for path, outcome in _fetched(farm, batch_id, output, template):
            if isinstance(outcome, FarmError):
                say(f"farm: {path}: {outcome}", file=sys.stderr)
                lost += 1
            elif outcome == 0:
                here += 1
            else:
                new, bytes_ = new + 1, bytes_ + outcome
    if as_json:
        print_json({"downloaded": new, "bytes": bytes_, "already_here": here, "not_downloaded": lost, "failed": failed})
    else:
        say(f"{new:,} images ({bytes_ / 2**20:.1f} MiB) in {output}; {here:,} were here already")
    if lost or failed:
        raise typer.Exit(1)


# -- fetching --------------------------------------------------------------------------------------------------------


def _fetched(farm: Farm, batch_id: str, directory: Path, template: str) -> Iterator[tuple[Path, int | FarmError]]:
    """Each path with the bytes that were fetched (0: it existed), or the reason why it could not be downloaded."""
    seen: set[Path] = set()

    def fetch(output: Output, path: Path) -> int | FarmError:
        if _is_here(path, output):
            return 0
        try:
            data = farm.download(output)
            path.parent.mkdir(parents=True, exist_ok=True)
            output_files.save(path, data)
        except FarmError as error:
            return error
        return len(data)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting: list[tuple[Path, Future[int | FarmError]]] = []
        for result in farm.results(batch_id):
            for one in result.outputs:
                path = directory / file_name(template, result, one)
                if path in seen:
                    raise BadInput.of("name", template, f"gives two images the name {path}: add {{seq}} and {{index}}")
                seen.add(path)
                waiting.append((path, pool.submit(fetch, one, path)))
            while len(waiting) > _AHEAD:
                first, outcome = waiting.pop(0)
                yield first, outcome.result()
        for path, outcome in waiting:
            yield path, outcome.result()


def _is_here(path: Path, output: Output) -> bool:
    try:
        if path.stat().st_size != output.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == output.sha256
    except OSError:
        return False


def file_name(template: str, result: Result, output: Output) -> str:
    """An image's name. What comes from outside cannot leave the directory: it has no separators left."""
    return template.format(
        seq=result.seq,
        id=result.job_id,
        custom_id=_plain(result.custom_id or ""),
        name=_plain(result.custom_id or result.job_id),
        index=output.index,
        seed=output.seed,
        suffix=output.suffix,
    )


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).lstrip(".")[:100]


def _check_template(template: str) -> None:
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        unknown = [name for name in fields if name not in _NAME_FIELDS]
        if not unknown:
            template.format(seq=1, id="", custom_id="", name="", index=0, seed=0, suffix="")
    except (ValueError, IndexError, KeyError) as error:
        raise BadInput.of("name", template, f"{template!r} is no template: {error}") from error
    if unknown:
        raise BadInput.of("name", template, f"{{{unknown[0]}}} is not known; there are {', '.join(_NAME_FIELDS)}")


# -- printing --------------------------------------------------------------------------------------------------------


def _content_type(file: str, given: Literal["jsonl", "csv"] | None) -> str:
    from farm.client import requests

    if given is None:
        endings: dict[str, Literal["jsonl", "csv"]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
        given = endings.get(Path(file).suffix.lower())
        if given is None:
            raise BadInput.of("format", file, f"{file} has no known extension: add --format jsonl or --format csv")
    return requests.CSV if given == "csv" else requests.JSONL


def _wait(farm: Farm, batch: Batch) -> Batch:
    try:
        with _showing() as show:
            return farm.wait_batch(batch, on_progress=show)
    except KeyboardInterrupt:
        say(
            f"Batch {batch.id} is still running. `farm watch {batch.id}` follows it.",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None


def _hint(farm: Farm, same_as: str | None) -> None:
    """Say that an equal file was submitted lately: the second time may be a mistake."""
    if same_as is None:
        return
    with contextlib.suppress(FarmError):  # it may be deleted by now
        earlier = farm.batch(same_as)
        say(f"farm: an equal file was submitted {age(earlier.created_at)} ago as {earlier.id}", file=sys.stderr)


def _exit(batch: Batch) -> None:
    counts = batch.counts
    say(
        f"{batch.state}: {counts['succeeded']:,} succeeded, {counts['failed']:,} failed, "
        f"{counts['canceled']:,} canceled",
        file=sys.stderr,
    )
    if batch.suspicious_output:
        say(f"{batch.suspicious_output:,} of them have outputs that look blank or silent", file=sys.stderr)
    if counts["succeeded"] < batch.total:
        raise typer.Exit(1)


@contextlib.contextmanager
def _showing() -> Iterator[Callable[[Batch], None]]:
    """What shows a batch's progress: a bar on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        last = [0.0]

        def line(batch: Batch) -> None:
            now = time.monotonic()
            if batch.over or now - last[0] >= _LINE_SECONDS:
                last[0] = now
                say(f"{batch.done:,} of {batch.total:,} done{_note(batch)}", file=sys.stderr)

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

    bar = Progress(
        BarColumn(bar_width=32),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=open_console(stderr=True),
    )
    row = bar.add_task("", total=None, note="")
    with bar:
        yield lambda batch: bar.update(row, total=batch.total, completed=batch.done, note=_note(batch).lstrip(", "))


def _note(batch: Batch) -> str:
    text = ""
    if batch.state == "paused":
        text += ", paused"
    if batch.counts.get("running"):
        text += f", {batch.counts['running']:,} running"
    if batch.counts.get("failed"):
        text += f", {batch.counts['failed']:,} failed"
    if batch.counts.get("canceled"):
        text += f", {batch.counts['canceled']:,} canceled"
    if batch.jobs_per_second:
        text += f", {batch.jobs_per_second:.2g} jobs/s"
    if batch.eta_seconds and not batch.over:
        text += f", {duration(batch.eta_seconds)} left"
    return text


def duration(seconds: float) -> str:
    """A time for people: ``42 s``, ``3 min``, ``2.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3600:.1f} h"


def _print_dry_run(found: DryRun, *, as_json: bool) -> None:
    if as_json:
        print_json(found.raw)
    else:
        for one in found.errors[:_SHOWN]:
            say(f"farm: {one}", file=sys.stderr)
        long = ""
        if found.estimated_seconds is not None:
            low, high = map(duration, found.estimated_seconds)
            long = f", about {low}" if low == high else f", {low} to {high}"
        say(f"{found.jobs:,} jobs, {found.cost:,.1f} megapixel-steps{long}; {found.refused:,} lines refused")
    if found.refused:
        raise typer.Exit(1)


def _print_refused(error: ApiError) -> None:
    for one in error.errors[:_SHOWN]:
        say(f"farm: {one}", file=sys.stderr)
    if error.error_count > _SHOWN:
        where = f": all of them are in {error.error_file}" if error.error_file else ""
        say(f"farm: and {error.error_count - _SHOWN:,} more{where}", file=sys.stderr)
    say("farm: nothing was submitted; --skip-invalid submits the valid lines", file=sys.stderr)


def _sentence(error: dict[str, Any]) -> str:
    if "line" in error:
        return f"line {error['line']}: " + "; ".join(f"{one['field']}: {one['message']}" for one in error["errors"])
    text = error.get("error") or {}
    return f"{error.get('custom_id') or error.get('id')}: {text.get('message')} ({text.get('code')})"


def _print_table(found: list[Batch]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("id", no_wrap=True, min_width=36)
    for heading in ("state", "age"):
        table.add_column(heading, no_wrap=True)
    for heading in ("jobs", "done", "failed", "canceled"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("name", no_wrap=True, overflow="ellipsis", ratio=1)
    for batch in found:
        counts = batch.counts
        table.add_row(
            batch.id,
            batch.state,
            age(batch.created_at),
            f"{batch.total:,}",
            f"{batch.done:,}",
            Text(f"{counts['failed']:,}", style="red" if counts["failed"] else ""),
            f"{counts['canceled']:,}",
            Text(batch.name or ""),
        )
    console = open_console()
    (console if console.is_terminal else open_console(width=200)).print(table)
