"""``farm models``: what there is to render with, what a model takes, changing it, and what is wrong with entries."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli import model_changes
from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.screen import open_console, say
from farm.errors import MissingExtra

if TYPE_CHECKING:
    from farm.client import Model

models = typer.Typer(help="List the models, show what one takes, add and remove models, and check a models file.")
models.command()(model_changes.add)
models.command()(model_changes.push)
models.command()(model_changes.remove)


@models.callback(invoke_without_command=True)
def _models(
    context: typer.Context,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List the models: their tasks and sizes, prompts to try, and the words they know."""
    if context.invoked_subcommand is not None:
        return
    with connect(url, api_key, data_dir) as farm:
        found, unready = farm.models(), farm.unready_models()
    if as_json:
        print_json([model.raw for model in (*found, *unready)])
    else:
        _print_models(found)
        for model in unready:
            say(model_changes.described(model))


@models.command()
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of `farm models`.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Show what a model takes for each of its tasks: parameters, inputs, schedulers."""
    with connect(url, api_key, data_dir) as farm:
        found = farm.model(model)
    if as_json:
        print_json(found.raw)
        return
    from rich.table import Table
    from rich.text import Text

    if found.report or found.state != "ready":
        say(model_changes.described(found))
    screen = open_console()
    for task, schema in found.schemas.items():
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in schema["properties"].items():
            required = " (required)" if name in schema.get("required", ()) else ""
            if value.get("type") == "object" and "properties" in value:
                for inner, one in value["properties"].items():
                    grid.add_row(f"  {name}.{inner}", Text(_described(one)))
            elif name not in ("task", "model"):
                grid.add_row(f"  {name}{required}", Text(_described(value)))
        screen.print(Text(f"{found.id}: {task}", style="bold"))
        screen.print(grid)


@models.command()
def check(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The models file. Default: FARM_MODELS_FILE, or the built-in one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the entries of a models file: each problem with its key and what to do. Exits with 1 if there is one.

    Where torch is installed, the packages that the models need are checked, too.
    """
    try:
        from farm import model_registry
        from farm.settings import Settings
    except ModuleNotFoundError as error:
        raise MissingExtra("farm models check", error.name or "", "server") from error

    registry = model_registry.load(file or Settings().models_file)
    problems = list(registry.problems)
    if importlib.util.find_spec("torch") is not None:  # the environment of a worker, which is what has the packages
        problems += [one for model in registry.models for one in model_registry.lacking(model)]
    if as_json:
        print_json(
            {
                "models": [
                    {"id": one.id, "pipeline": one.pipeline, "tasks": list(one.tasks)} for one in registry.rendering
                ],
                "problems": [vars(one) for one in problems],
            }
        )
    else:
        for model in registry.rendering:
            say(f"{model.id}  {model.pipeline or 'class not known here'}  {', '.join(model.tasks)}")
        for problem in problems:
            say(f"{problem.origin}: model {problem.entry}: {problem.key}: {problem.message}\n  → {problem.remedy}")
    if problems:
        raise typer.Exit(1)


def _described(schema: dict[str, Any]) -> str:
    """A value's default, choices and meaning."""
    parts = [str(schema["description"])] if schema.get("description") else []
    if "enum" in schema:
        parts.append(f"One of {', '.join(map(str, schema['enum']))}.")
    if "default" in schema:
        parts.append(f"Default: {json.dumps(schema['default'], ensure_ascii=False)}.")
    return " ".join(parts)


def _print_models(found: tuple[Model, ...]) -> None:
    from rich.table import Table
    from rich.text import Text

    screen = open_console()
    for model in found:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        limits = model.limits
        rows = {
            "tasks": ", ".join(model.tasks),
            "pipeline": str(model.raw.get("pipeline") or ""),
            "sides": f"{limits.get('min_side')} to {limits.get('max_side')} pixels",
            "defaults": ", ".join(f"{name} {value}" for name, value in model.defaults.items()),
            "loaded on": ", ".join(model.raw.get("loaded_on") or ()),
            **{kind: ", ".join(words) for kind, words in model.vocabulary.items()},
            "try": "\n".join(f'farm render "{prompt}"' for prompt in model.example_prompts),
        }
        for name, value in rows.items():
            if value:
                grid.add_row(f"  {name}", Text(value))
        screen.print(Text(model.id, style="bold"), Text(model.description))
        screen.print(grid)
