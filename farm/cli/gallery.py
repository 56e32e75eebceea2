"""``farm outputs list``, ``label``, ``download`` and ``delete``: find outputs again and keep some of them."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from farm.api_types import Task
from farm.cli import output_files
from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.screen import say
from farm.errors import BadInput

if TYPE_CHECKING:
    from farm.client.models import FoundOutput

MAX_PLACES: Final = 1_000  #: outputs that one request may name

Words = Annotated[str | None, typer.Option("--search", "-q", help="Words of the prompt.")]
OfModel = Annotated[str | None, typer.Option("--model", help="Only this model.")]
OfTask = Annotated[Task | None, typer.Option("--task", help="Only this task.")]
OfBatch = Annotated[str | None, typer.Option("--batch", metavar="ID", help="Only jobs of this batch.")]
OfName = Annotated[str | None, typer.Option("--custom-id", help="Only jobs with this custom_id.")]
Star = Annotated[bool, typer.Option("--star", help="Only outputs with a star.")]
Tag = Annotated[str | None, typer.Option("--tag", help="Only outputs with this tag.")]
Collection = Annotated[str | None, typer.Option("--collection", help="Only outputs of this collection.")]
After = Annotated[datetime | None, typer.Option("--since", help="Only of jobs submitted then or later; local time.")]
Limit = Annotated[int, typer.Option(min=1, help="Maximum number.")]
Places = Annotated[list[str], typer.Argument(metavar="JOB/INDEX…", help="Outputs, as `farm outputs list` prints them.")]
Names = Annotated[list[str] | None, typer.Option(help="May be repeated.")]


def _filters(
    q: str | None, model: str | None, task: Any, batch: str | None, custom_id: str | None, star: bool,
    tag: str | None, collection: str | None, since: datetime | None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "q": q, "model": model, "task": task, "batch_id": batch, "custom_id": custom_id, "star": star or None,
        "tag": tag, "collection": collection, "created_after": None if since is None else since.astimezone(),
    }  # fmt: skip


def list_outputs(
    q: Words = None,
    model: OfModel = None,
    task: OfTask = None,
    batch: OfBatch = None,
    custom_id: OfName = None,
    star: Star = False,
    tag: Tag = None,
    collection: Collection = None,
    since: After = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List outputs, newest job first."""
    wanted = _filters(q, model, task, batch, custom_id, star, tag, collection, since)
    with connect(url, api_key, data_dir) as farm:
        found = list(farm.outputs(limit=limit, **wanted))
    if as_json:
        print_json([one.raw for one in found])
        return
    for one in found:
        marks = ("* " if one.star else "") + " ".join(f"#{tag}" for tag in one.tags)
        print(f"{one.job_id}/{one.index}  {marks}{'  ' if marks else ''}{' '.join(one.prompt.split())[:60]}")
    if not found:
        say("no outputs", file=sys.stderr)


def label(
    outputs: Places,
    star: Annotated[bool | None, typer.Option("--star/--no-star", help="Give a star, or take it away.")] = None,
    tag: Names = None,
    untag: Names = None,
    collect: Annotated[list[str] | None, typer.Option(help="Put into this collection; may be repeated.")] = None,
    remove_from: Annotated[list[str] | None, typer.Option(help="Take out of this collection; may be repeated.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Star, tag and collect outputs."""
    with connect(url, api_key, data_dir) as farm:
        changed = farm.label_outputs(
            outputs, star=star, add_tags=tag or [], remove_tags=untag or [], add_to=collect or [],
            remove_from=remove_from or [],
        )  # fmt: skip
    for one in changed:
        marks = [*(["star"] if one.star else []), *(f"#{name}" for name in one.tags), *one.collections]
        print(f"{one.job_id}/{one.index}  {', '.join(marks) or 'no mark'}")


def download(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where the files go.")],
    q: Words = None,
    model: OfModel = None,
    task: OfTask = None,
    batch: OfBatch = None,
    custom_id: OfName = None,
    star: Star = False,
    tag: Tag = None,
    collection: Collection = None,
    since: After = None,
    limit: Limit = 1_000,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Download the outputs that match, each checked against its SHA-256. A file that is there already is kept."""
    wanted = _filters(q, model, task, batch, custom_id, star, tag, collection, since)
    directory.mkdir(parents=True, exist_ok=True)
    with connect(url, api_key, data_dir) as farm:
        for one in farm.outputs(limit=limit, **wanted):
            path = directory / _file_name(one)
            if path.exists():
                continue
            output_files.save(path, farm.download(one.output))
            print(path)


def _file_name(one: FoundOutput) -> str:
    return f"{output_files.slug(one.prompt) or 'output'}-{one.job_id[-8:]}-{one.index}{one.output.suffix}"


def delete(
    outputs: Places,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Delete outputs for good. Their jobs stay, with parameters and recipe."""
    if len(outputs) > MAX_PLACES:
        raise BadInput.of("outputs", len(outputs), f"at most {MAX_PLACES:,} at once")
    if not yes and not typer.confirm(f"delete {len(outputs):,} outputs?", err=True):
        raise typer.Exit(1)
    with connect(url, api_key, data_dir) as farm:
        gone = farm.delete_outputs(outputs)
    say(f"{gone:,} outputs deleted")
