"""``farm …``: every command, each loaded only when it is asked for, so that ``farm --help`` is quick."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Final

import typer

from farm import __version__
from farm.errors import FarmError, Unavailable

#: command: the module of ``farm.cli`` that has it, and its line in ``farm --help``
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("up", "Start a whole farm on this machine."),
    "down": ("up", "Stop the farm of a data directory."),
    "status": ("status", "Show the health of each part."),
    "doctor": ("doctor", "Say what is wrong and what to do."),
    "render": ("render", "Render one image and save it."),
    "rerun": ("render", "Render an image again from its own metadata."),
    "ls": ("jobs", "List jobs."),
    "show": ("jobs", "Show all about one job."),
    "cancel": ("jobs", "Stop jobs."),
    "retry": ("jobs", "Submit failed or canceled jobs again."),
    "submit": ("batches", "Submit a file of jobs as one batch."),
    "watch": ("batches", "Follow a batch until it ends."),
    "get": ("batches", "Download a batch's images."),
    "batches": ("batches", "List batches."),
    "pause": ("batches", "Pause a batch."),
    "resume": ("batches", "Resume a paused batch."),
    "delete": ("batches", "Delete a batch that has ended."),
    "workers": ("workers", "List, drain, stop and resume workers."),
    "pauses": ("workers", "Pause the farm, a model or a tenant."),
    "models": ("workers", "List the models and example prompts."),
    "webhooks": ("webhooks", "Manage webhooks, or receive them on this machine."),
    "keys": ("keys", "List, create, rotate and revoke API keys."),
    "tenants": ("tenants", "List, create, change and remove tenants."),
    "usage": ("tenants", "Show what tenants have used, by day and model."),
    "demo": ("demo", "Start a farm, render all four tasks, stop it."),
    "api": ("serve_api", "Run the HTTP API."),
    "dispatcher": ("serve_dispatcher", "Run one dispatcher."),
    "deliverer": ("serve_deliverer", "Run one webhook deliverer."),
    "worker": ("serve_worker", "Run one worker, which owns one device."),
    "flower": ("serve_flower", "Run Flower, Celery's own dashboard."),
    "init": ("init", "Prepare your own servers: schema, bucket, first API key."),
    "migrate": ("migrate", "Migrate the database to this release's schema."),
}


def app(chosen: str | None) -> typer.Typer:
    """The program with one command loaded, or, with None, all of them by their names alone (for the help page)."""
    program = typer.Typer(
        help="A render farm for diffusion models.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.callback()(_program)
    for name, (module, line) in COMMANDS.items():
        if chosen is None:
            program.command(name, help=line)(_unloaded)
        elif name == chosen:
            found = getattr(importlib.import_module(f"farm.cli.{module}"), name)
            if isinstance(found, typer.Typer):
                program.add_typer(found, name=name)
            else:
                program.command(name)(found)
    return program


def main() -> None:
    """The ``farm`` program. A `FarmError` is the user's affair: its sentence and exit code 2 (3: unreachable)."""
    # Only the first word can name a command: options of the program itself take no values.
    chosen = next((word for word in sys.argv[1:2] if word in COMMANDS), None)
    try:
        app(chosen)(prog_name="farm")
    except FarmError as error:
        print(f"farm: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, Unavailable) else 2)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"farm {__version__}")
        raise typer.Exit


def _program(
    _version: Annotated[
        bool,
        typer.Option("--version", "-V", is_eager=True, callback=_show_version, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def _unloaded() -> None:
    """Stands for a command on the help page."""
