"""``farm up`` and ``farm down``: the whole farm on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn
from urllib.parse import unquote, urlsplit

import typer
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from farm.cli.screen import open_console
from farm.errors import FarmError, SetupError
from farm.local import health, logs, tcp_proxy
from farm.local.process import clean_up
from farm.local.servers import Servers, read_settings
from farm.local.state import DataDirectory, Identity, RunState
from farm.local.supervisor import ALREADY_RUNNING, AlreadyRunning, Options, Supervisor

DataDir = Annotated[
    Path,
    typer.Option("--data-dir", envvar="FARM_DATA_DIR", help="The data directory of the farm.", show_default=True),
]

#: How long ``farm up --detach`` waits until the API answers, in seconds.
READY_SECONDS = 60.0

#: How long ``farm down`` waits for the supervisor: workers have 30 s, servers 20 s.
DOWN_SECONDS = 65.0

_COLOURS = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_green", "bright_magenta")


def up(
    data_dir: DataDir = Path(".farm"),
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The API's port; 8000, or a free one when that is taken.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, max=256, help="How many workers; one per device, or one on the CPU without a device."),
    ] = None,
    servers_only: Annotated[
        bool, typer.Option("--servers-only", help="Start PostgreSQL, Valkey and S3 and prepare them, but no services.")
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option(help="This machine's address in a private network, at which workers of other machines may join."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when the API answers; `farm down` stops the farm.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as one JSON object.")] = False,
) -> None:
    """Start the whole farm on this machine: its servers, API, dispatcher, deliverer, workers and Flower."""
    options = Options(data_dir.absolute(), port, workers, servers_only, listen)
    directory = DataDirectory(options.directory)
    try:
        read_settings()  # what is wrong in the environment is said here, not in a log
        if listen is not None:
            tcp_proxy.check(listen)
        if detach:
            run = _start_detached(options, directory)
        else:
            _run_here(options, as_json)
            return
    except AlreadyRunning as error:
        try:
            run = _wait_ready(directory, lambda: None)
        except FarmError as failure:
            _fail(failure)
        typer.echo(f"{error}", err=True)
    except FarmError as error:
        _fail(error)
    _show(run, as_json=as_json, detached=True)


def down(data_dir: DataDir = Path(".farm")) -> None:
    """Stop the farm: services first, then the servers. Stored data stays."""
    directory = DataDirectory(data_dir)
    run = directory.run()
    if run is None:
        typer.echo(f"no farm is running in {directory.path}", err=True)
        return
    ended = clean_up([run.supervisor], grace_seconds=DOWN_SECONDS) if run.supervisor.alive() else []
    # A supervisor that was killed, now or earlier, could not end its own.
    left = clean_up(part.identity for part in run.parts if part.identity is not None)
    # Servers that were killed could not tidy up either.
    with contextlib.suppress(SetupError):
        for program in Servers.of(directory, directory.farm(), read_settings()).programs():
            program.after_stop()
    directory.end_run()
    typer.echo(f"stopped the farm in {directory.path}" if ended or left else f"no farm was running in {directory.path}")


def _run_here(options: Options, as_json: bool) -> None:
    screen = open_console(stderr=True)
    colours: dict[str, str] = {}

    def show(part: str, line: str) -> None:
        colour = colours.setdefault(part, _COLOURS[len(colours) % len(_COLOURS)])
        screen.print(Text(f"{part:<12} ", style=colour) + Text(logs.plain(line)), soft_wrap=True)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            style = "bold red" if record.levelno >= logging.WARNING else "bold"
            screen.print(Text(f"{'farm':<12} ", style="bold") + Text(record.getMessage(), style=style), soft_wrap=True)

    own = logging.getLogger("farm.supervisor")
    own.addHandler(Handler())
    own.setLevel(logging.INFO)
    own.propagate = False
    Supervisor(options, show=show, on_ready=lambda run: _show(run, as_json=as_json, detached=False)).run()


def _start_detached(options: Options, directory: DataDirectory) -> RunState:
    running = directory.run()
    if running is not None and running.supervisor.alive() and running.phase != "failed":
        raise AlreadyRunning(directory, running)
    directory.create()
    log = directory.log("supervisor")
    logs.rotate(log)
    # It stays in our working directory, as in the foreground: FARM_MODELS_FILE and its like may be relative.
    # A file of its own from the first byte, for its owner alone.
    with open(os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab") as stream:  # noqa: PTH123
        supervisor = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "farm.local.supervisor", *options.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    mine = Identity.of(supervisor.pid)

    def ended() -> None:
        code = supervisor.poll()
        if code == ALREADY_RUNNING:
            raise AlreadyRunning(directory, directory.run())
        if code is not None:
            run = directory.run()
            if run is not None and run.supervisor == mine and run.message:
                _show_tail(directory, run.failed_part)
                raise SetupError(run.message)
            _show_tail(directory, "supervisor")
            raise SetupError(f"the supervisor ended with exit code {code}; its log is {log}")

    try:
        return _wait_ready(directory, ended, mine)
    except _TooLong as error:
        for part in error.parts:
            _show_tail(directory, part)
        supervisor.send_signal(signal.SIGTERM)
        try:
            supervisor.wait(timeout=DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            supervisor.kill()
        raise
    except KeyboardInterrupt:
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait()
        raise


class _TooLong(SetupError):
    """The farm is not ready in time."""

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts
        super().__init__(
            f"the farm was not ready within {READY_SECONDS:.0f} s ({', '.join(parts) or 'it was still starting'}), "
            "so it was stopped; `farm doctor` says more"
        )


def _wait_ready(directory: DataDirectory, ended: Callable[[], None], supervisor: Identity | None = None) -> RunState:
    """Wait until the run is ready; of this supervisor where one is given. ``ended`` raises when there is no point."""
    deadline = time.monotonic() + READY_SECONDS
    with open_console(stderr=True).status("starting the farm") as status:
        while True:
            run = directory.run()
            if run is not None and (supervisor is None or run.supervisor == supervisor):
                if run.phase == "ready":
                    return run
                if supervisor is None and (run.phase == "failed" or not run.supervisor.alive()):
                    raise SetupError(run.message or "the farm stopped meanwhile: start it again")
                if run.message:
                    status.update(escape(run.message))
            elif supervisor is None:
                raise SetupError("the farm stopped meanwhile: start it again")
            ended()
            if time.monotonic() > deadline:
                raise _TooLong(_unwell(directory))
            time.sleep(0.05)


def _unwell(directory: DataDirectory) -> list[str]:
    """The parts that failed: those that ended, else those that do not answer."""
    parts = [
        part for part in health.parts(directory, read_settings()) if part.condition is not health.Condition.HEALTHY
    ]
    died = [part.name for part in parts if part.restarts or part.condition is health.Condition.RESTARTING]
    return died or [part.name for part in parts]


def _show_tail(directory: DataDirectory, part: str) -> None:
    lines = logs.tail(directory.log(part)) if part else []
    if lines:
        screen = open_console(stderr=True)
        screen.print(f"the last lines of {directory.log(part)}:", style="bold", markup=False, soft_wrap=True)
        for line in lines:
            screen.print(f"  {line}", markup=False, soft_wrap=True)


def _show(run: RunState, *, as_json: bool, detached: bool) -> None:
    troubled = [part.name for part in run.parts if part.restarts or part.identity is None]
    if troubled:
        typer.echo(f"farm: {', '.join(troubled)} did not start at once: see `farm status`", err=True)
    if as_json:
        print(json.dumps(run.addresses), flush=True)
        return
    addresses = run.addresses
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")
    if any(part.name == "api" for part in run.parts):
        rows.add_row("Dashboard", f"{addresses['url']}/farm  (sign in with the API key below)")
        rows.add_row("API", addresses["url"])
        rows.add_row("API docs", f"{addresses['url']}/docs")
        flower = urlsplit(addresses["flower_url"])
        rows.add_row("Flower", f"{flower.scheme}://{flower.hostname}:{flower.port}")
        rows.add_row("", f"user {unquote(flower.username or '')}, password {unquote(flower.password or '')}")
    rows.add_row("PostgreSQL", _place(addresses["database_url"]))
    rows.add_row("Valkey", _place(addresses["redis_url"]))
    rows.add_row("S3", f"{addresses['s3']['endpoint_url']}  (bucket {addresses['s3']['bucket']})")
    rows.add_row("Data", addresses["data_dir"])
    screen = open_console()
    stop = "farm down" if detached else "Ctrl-C"
    screen.print(Panel(rows, title="the farm is running", subtitle=f"stop it with {stop}", expand=False))
    # On lines of their own, so that they can be copied whole however narrow the terminal is.
    typer.echo(f"export FARM_URL={addresses['url']}")
    typer.echo(f"export FARM_API_KEY={addresses['api_key']}")
    if addresses.get("external_url"):
        typer.echo(f"farm worker --join {addresses['external_url']} --token {addresses['join_token']}")
        screen.print(
            "[yellow]Whoever has that token can read and change all jobs of this farm, and what passes is not "
            "encrypted: use a private network. `farm workers tokens` lists and revokes tokens.[/yellow]"
        )
    screen.print(
        "[yellow]On this machine webhooks may go to loopback addresses over plain HTTP "
        "(FARM_WEBHOOK_ALLOW, FARM_WEBHOOK_ALLOW_HTTP).[/yellow]"
    )
    sys.stdout.flush()


def _place(url: str) -> str:
    """A server's address without its password, which ``--json`` prints."""
    parsed = urlsplit(url)
    return f"{parsed.hostname}:{parsed.port}{parsed.path}"


def _fail(error: FarmError) -> NoReturn:
    typer.echo(f"farm: {error}", err=True)
    raise typer.Exit(1)
