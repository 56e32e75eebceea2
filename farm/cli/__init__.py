"""``farm …``: every command, each loaded only when it is used, so that ``farm --help`` is quick."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Final, NamedTuple

import typer

from farm import __version__
from farm.cli.screen import say
from farm.errors import FarmError, MissingExtra, Unavailable

_COMPLETING: Final = "_FARM_COMPLETE"  #: typer's variable that a shell sets to ask for completions


class Command(NamedTuple):
    """Where a command is and what it needs."""

    module: str  #: of ``farm.cli``
    help: str  #: its line in ``farm --help``
    extra: str | None = None  #: the extra of the package that it needs; None: it works with the base installation


COMMANDS: Final[dict[str, Command]] = {
    "up": Command("up", "Start a whole farm on this machine.", "local"),
    "down": Command("up", "Stop the farm of a data directory.", "local"),
    "login": Command("login", "Keep a farm's address and API key."),
    "logout": Command("login", "Forget a farm's address and API key."),
    "open": Command("login", "Open the dashboard in a browser."),
    "status": Command("status", "Show the health of each part."),
    "doctor": Command("doctor", "Say what is wrong and what to do.", "server"),
    "render": Command("render", "Render one image and save it."),
    "rerun": Command("render", "Render an image again from its own metadata."),
    "ls": Command("jobs", "List jobs."),
    "show": Command("jobs", "Show all about one job."),
    "cancel": Command("jobs", "Stop jobs."),
    "retry": Command("jobs", "Submit failed or canceled jobs again."),
    "submit": Command("batches", "Submit a file of jobs as one batch."),
    "watch": Command("batches", "Follow a batch until it ends."),
    "get": Command("batches", "Download a batch's images."),
    "batches": Command("batches", "List batches."),
    "pause": Command("batches", "Pause a batch."),
    "resume": Command("batches", "Resume a paused batch."),
    "delete": Command("batches", "Delete a batch or a job that has ended."),
    "workers": Command("workers", "List, drain, stop and resume workers."),
    "pauses": Command("workers", "Pause the farm, a model or a tenant."),
    "models": Command("models", "List, show, add, push, remove and check models."),
    "audit": Command("audit", "Show who changed what."),
    "outputs": Command("outputs", "Find, mark, download, delete and check outputs."),
    "webhooks": Command("webhooks", "Manage webhooks, or receive them on this machine."),
    "keys": Command("keys", "List, create, rotate and revoke API keys."),
    "tenants": Command("tenants", "List, create, change and remove tenants."),
    "usage": Command("tenants", "Show what tenants have used, by day and model."),
    "demo": Command("demo", "Start a farm, render all four tasks, stop it.", "local"),
    "api": Command("serve_api", "Run the HTTP API.", "server"),
    "dispatcher": Command("serve_dispatcher", "Run one dispatcher.", "server"),
    "deliverer": Command("serve_deliverer", "Run one webhook deliverer.", "server"),
    "worker": Command("serve_worker", "Run a worker for one device, or for each.", "worker"),
    "storage": Command("serve_storage", "Run the S3 server of `farm up` by itself.", "storage"),
    "flower": Command("serve_flower", "Run Flower, Celery's own dashboard.", "server"),
    "init": Command("init", "Prepare your own servers: schema, bucket, first API key.", "server"),
    "migrate": Command("migrate", "Migrate the database to this release's schema.", "server"),
}


#: The functions of commands that are not called like them.
_NAMES: Final = {"open": "open_dashboard"}


def app(chosen: str | None) -> typer.Typer:
    """The program with one command loaded, or, with None, all of them by their names alone (for the help page)."""
    program = typer.Typer(
        help="A render farm for diffusion models.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.callback()(_program)
    for name, command in COMMANDS.items():
        if chosen is None:
            program.command(name, help=command.help)(_unloaded)
        elif name == chosen:
            found = getattr(importlib.import_module(f"farm.cli.{command.module}"), _NAMES.get(name, name))
            if isinstance(found, typer.Typer):
                program.add_typer(found, name=name)
            else:
                program.command(name)(found)
    return program


def main() -> None:
    """Run the ``farm`` program.

    A `FarmError` is printed as one sentence, with exit code 2 (3: a farm does not answer). A command whose packages are
    not installed says which extra has them.
    """
    chosen = _chosen()
    try:
        app(chosen)(prog_name="farm")
    except ModuleNotFoundError as error:
        extra = COMMANDS[chosen].extra if chosen else None
        package = (error.name or "").partition(".")[0]
        if extra is None or package in ("farm", "workers", ""):
            raise
        if _COMPLETING in os.environ:  # a shell asks for completions and would print what is said here
            sys.exit(0)
        print(f"farm: {MissingExtra(f'farm {chosen}', package, extra)}", file=sys.stderr)
        sys.exit(2)
    except FarmError as error:
        say(f"farm: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, Unavailable) else 2)


def _chosen() -> str | None:
    """The command that is called, or whose options a shell asks for."""
    if _COMPLETING not in os.environ:
        # Only the first word can name a command: options of the program itself take no values.
        return next((word for word in sys.argv[1:2] if word in COMMANDS), None)
    typed = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    words = typed.split()
    whole = len(words) > 2 or typed[-1:].isspace()  # `farm pause` may become `farm pauses`
    return words[1] if whole and len(words) > 1 and words[1] in COMMANDS else None


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
