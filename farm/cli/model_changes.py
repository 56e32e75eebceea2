"""``farm models add``, ``push`` and ``remove``: models that change while the farm runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.screen import open_console, say
from farm.errors import BadInput

if TYPE_CHECKING:
    from farm.client import Farm, Model
    from farm.client.model_push import PushProgress

Id = Annotated[
    str | None,
    typer.Option("--id", help="What jobs name. Default: the Hub repository, or the name of the folder or file."),
]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", help="A task; may be repeated. Default: all that its class can do.")
]
Config = Annotated[
    str | None,
    typer.Option(help="Of a checkpoint in one file: the model of the farm, folder or Hub repository with its configs."),
]
Pipeline = Annotated[str | None, typer.Option(help="The class of diffusers. Default: what the files say.")]
Dtype = Annotated[str | None, typer.Option(help="Of the weights: auto, float32, float16 or bfloat16.")]
Variant = Annotated[str | None, typer.Option(help="The weights' file variant, such as fp16.")]
Description = Annotated[str | None, typer.Option(help="For people.")]
Defaults = Annotated[
    list[str] | None,
    typer.Option("--default", metavar="NAME=VALUE", help="What a job gets that leaves it open; may be repeated."),
]
MemoryBytes = Annotated[int | None, typer.Option(help="Only devices with so much memory get its jobs.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Whether to wait until a worker has checked it.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Only workers with this tag get its jobs.")]


def add(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder that every worker sees, or a Hub repository.")
    ],
    model_id: Id = None,
    task: Tasks = None,
    config: Config = None,
    pipeline: Pipeline = None,
    dtype: Dtype = None,
    variant: Variant = None,
    revision: Annotated[str | None, typer.Option(help="The Hub revision to pin.")] = None,
    description: Description = None,
    default: Defaults = None,
    memory_bytes: MemoryBytes = None,
    tag: Tags = None,
    wait: Wait = True,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Add a model while the farm runs; jobs may name it when a worker has checked it. Exits with 1 if that fails."""
    path = Path(source)
    if path.exists():  # the workers have other working directories
        path = path.resolve()
    fields: dict[str, Any] = {
        "tasks": task or None,
        "config": config,
        "pipeline": pipeline,
        "dtype": dtype,
        "variant": variant,
        "revision": revision,
        "description": description,
        "defaults": assignments("default", default or ()) or None,
        "memory_bytes": memory_bytes,
        "tags": tag or None,
    }
    with connect(url, api_key, data_dir) as farm:
        found = farm.add_model(model_id or default_id(source), str(path) if path.exists() else source, **fields)
        _finish(farm, found, wait=wait, as_json=as_json)


def push(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder in diffusers' layout, or a .safetensors checkpoint.")
    ],
    model_id: Id = None,
    task: Tasks = None,
    config: Config = None,
    pipeline: Pipeline = None,
    dtype: Dtype = None,
    variant: Variant = None,
    description: Description = None,
    default: Defaults = None,
    memory_bytes: MemoryBytes = None,
    tag: Tags = None,
    wait: Wait = True,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Upload a model of this machine into the farm's bucket and add it; workers fetch it once per host.

    What the bucket has already is not sent again: a push that broke off goes on where it was.
    """
    fields: dict[str, Any] = {
        "tasks": task or None,
        "config": config,
        "pipeline": pipeline,
        "dtype": dtype,
        "variant": variant,
        "description": description,
        "defaults": assignments("default", default or ()) or None,
        "memory_bytes": memory_bytes,
        "tags": tag or None,
    }
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with connect(url, api_key, data_dir) as farm:
        with Progress(*columns, console=open_console(stderr=True), disable=as_json) as bar:
            shown = bar.add_task(f"reading {source}", total=None)

            def progress(now: PushProgress) -> None:
                bar.update(shown, description=f"pushing {source}", completed=now.done, total=now.total)

            found = farm.push_model(source, model_id, on_progress=progress, **fields)
        _finish(farm, found, wait=wait, as_json=as_json)


def remove(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model that was added.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Let no new job name a model. Accepted ones still end with it."""
    with connect(url, api_key, data_dir) as farm:
        gone = farm.remove_model(model)
    if as_json:
        print_json(gone.raw)
    else:
        say(f"{gone.id} is removed; jobs that were accepted before still end with it")


def default_id(source: str) -> str:
    """What a model is called that gets no name: its repository on the Hub, or its file's or folder's name."""
    path = Path(source)
    if path.exists() or "://" in source or path.is_absolute():
        return path.resolve().name.removesuffix(".safetensors")
    return source


def assignments(name: str, given: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` by name; a value that is JSON is read as such. Raises `BadInput`."""
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise BadInput.of(name, text, "must be NAME=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def described(model: Model) -> str:
    """Where an added model stands, in a line."""
    report = model.report
    match model.state:
        case "checking":
            where = f" on {report['worker']}" if report.get("worker") else ""
            stage = str(report.get("stage") or "waiting for a worker")
            return f"{model.id}: {stage}{where}" + (f": {report['message']}" if report.get("message") else "")
        case "failed":
            return f"{model.id} cannot be used: {report.get('message')}"
    left_out = [one for one in report.get("tasks", ()) if one["state"] == "failed"]
    lines = [f"{model.id} is {model.state}: {', '.join(model.tasks)}"]
    lines += [f"  {one['task']} is left out: {one['message']}" for one in left_out]
    return "\n".join(lines)


def _finish(farm: Farm, model: Model, *, wait: bool, as_json: bool) -> None:
    """Wait for the check, telling each stage once, and print how it ended. Raises `typer.Exit` if it failed."""
    told = ""

    def tell(now: Model) -> None:
        nonlocal told
        if now.state == "checking" and not as_json and (line := described(now)) != told:
            told = line
            say(line, file=sys.stderr, flush=True)

    found = farm.wait_model(model, on_progress=tell) if wait else model
    if as_json:
        print_json(found.raw)
    else:
        say(described(found))
    if found.state == "failed":
        raise typer.Exit(1)
