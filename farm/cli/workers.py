"""``farm workers`` and ``pauses``: who renders, and what operators have stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.jobs import age
from farm.cli.screen import open_console, say

if TYPE_CHECKING:
    from farm.client.models import JoinToken, Worker

workers = typer.Typer(help="List, drain, stop and resume workers.")
tokens = typer.Typer(help="List, create and revoke tokens with which workers on other machines join.")
workers.add_typer(tokens, name="tokens")
pauses = typer.Typer(help="Show, set and end pauses of the farm, of models and of tenants.")

Name = Annotated[str, typer.Argument(help="The worker's name, as in `farm workers`.")]
PausedModel = Annotated[str | None, typer.Option("--model", help="Only jobs of this model.")]
PausedTenant = Annotated[str | None, typer.Option("--tenant", metavar="ID", help="Only jobs of this tenant.")]


@workers.callback(invoke_without_command=True)
def _workers(
    context: typer.Context,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List, drain, stop and resume workers. Without a command, list them."""
    if context.invoked_subcommand is None:
        _list_workers(as_json, url, api_key, data_dir)


@workers.command()
def drain(
    name: Name, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = HERE
) -> None:
    """Let a worker finish its jobs and dispatch no new ones to it, also after a restart."""
    with connect(url, api_key, data_dir) as farm:
        _steered(farm.drain_worker(name), as_json=as_json)


@workers.command()
def stop(
    name: Name, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = HERE
) -> None:
    """Drain a worker and end its process; if something starts it again, it stays drained until you resume it."""
    with connect(url, api_key, data_dir) as farm:
        _steered(farm.stop_worker(name), as_json=as_json)


@workers.command(name="resume")
def resume_worker(
    name: Name, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = HERE
) -> None:
    """Give a drained worker jobs again, whatever it was drained for."""
    with connect(url, api_key, data_dir) as farm:
        _steered(farm.resume_worker(name), as_json=as_json)


def _steered(worker: Worker, *, as_json: bool) -> None:
    if as_json:
        print_json(worker.raw)
        return
    drained = f": {worker.drained_reason}" if worker.drained_reason else ""
    say(f"{worker.name}  {'stopping' if worker.stopping else worker.state}{drained}")


@tokens.callback(invoke_without_command=True)
def _tokens(
    context: typer.Context,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List, create and revoke join tokens. Without a command, list them. Needs a key with the scope admin."""
    if context.invoked_subcommand is None:
        with connect(url, api_key, data_dir) as farm:
            _show_tokens(farm.join_tokens(), as_json=as_json)


@tokens.command(name="create")
def create_token(
    name: Annotated[str, typer.Argument(help="A description.")],
    hours: Annotated[float, typer.Option(min=0.02, max=8760, help="How long workers may join with it.")] = 24,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Create a token for `farm worker --join`. It is shown once."""
    with connect(url, api_key, data_dir) as farm:
        token = farm.make_join_token(name, round(hours * 3600))
    if as_json:
        print_json(token.raw)
    else:
        say(token.text)


@tokens.command(name="revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as in `farm workers tokens`.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Let nobody else join with a token. Workers that have joined go on."""
    with connect(url, api_key, data_dir) as farm:
        _show_tokens([farm.revoke_join_token(token_id)], as_json=as_json)


def _show_tokens(found: Sequence[JoinToken], *, as_json: bool) -> None:
    if as_json:
        print_json([token.raw for token in found])
        return
    from datetime import UTC, datetime

    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("id", "name", "made", "state", "last used"):
        table.add_column(heading, no_wrap=heading == "id")
    for token in found:
        if token.revoked_at is not None:
            state = "revoked"
        elif token.expires_at is not None and token.expires_at < datetime.now(UTC):
            state = "expired"
        else:
            state = f"until {token.expires_at:%Y-%m-%d %H:%M} UTC"
        used = "never" if token.last_used_at is None else f"{age(token.last_used_at)} ago"
        table.add_row(token.id, Text(token.name), f"{age(token.created_at)} ago", state, used)
    open_console().print(table)


@pauses.callback(invoke_without_command=True)
def _pauses(
    context: typer.Context,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Show, set and end pauses. Without a command, show them. Needs a key with the scope operate."""
    if context.invoked_subcommand is None:
        with connect(url, api_key, data_dir) as farm:
            _show_pauses(farm.pauses(), as_json=as_json)


@pauses.command(name="set")
def set_pause(
    model: PausedModel = None,
    tenant: PausedTenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Dispatch no jobs of a model, of a tenant, or (without an option) of the whole farm."""
    with connect(url, api_key, data_dir) as farm:
        _show_pauses(farm.pause(model=model, tenant=tenant), as_json=as_json)


@pauses.command(name="end")
def end_pause(
    model: PausedModel = None,
    tenant: PausedTenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """End the pause of a model, of a tenant, or (without an option) of the farm."""
    with connect(url, api_key, data_dir) as farm:
        _show_pauses(farm.resume(model=model, tenant=tenant), as_json=as_json)


def _show_pauses(now: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(now)
        return
    lines = ["the farm is paused"] if now["farm"] else []
    lines += [f"{kind} {name} is paused" for kind in ("model", "tenant") for name in now[f"{kind}s"]]
    say("\n".join(lines or ["nothing is paused"]))


def _list_workers(as_json: bool, url: str | None, api_key: str | None, data_dir: Path) -> None:
    with connect(url, api_key, data_dir) as farm:
        found = farm.workers()
    if as_json:
        print_json([worker.raw for worker in found])
        return
    if not found:
        say("no worker has joined yet: start one with `farm worker`", file=sys.stderr)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("worker", "state", "device", "memory", "dtype", "numerics", "jobs", "models", "heartbeat"):
        # A narrow terminal breaks words rather than end them: names are copied into other commands.
        justify: Literal["left", "right"] = "right" if heading in {"memory", "jobs", "heartbeat"} else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    for worker in found:
        table.add_row(
            worker.name,
            Text(
                "stopping" if worker.stopping else worker.state,
                style={"online": "green", "draining": "yellow"}.get(worker.state, "red"),
            ),
            worker.device,
            f"{worker.memory_bytes / 2**30:.1f} GiB",
            worker.dtype,
            worker.numerics or "",
            f"{worker.held_jobs} of {worker.slots}",
            ", ".join(worker.models),
            f"{age(worker.heartbeat_at)} ago",
        )
    screen = open_console()
    # In a file or a pipe each worker has one line.
    (screen if screen.is_terminal else open_console(width=250)).print(table)
    for worker in found:
        if worker.drained_reason:
            screen.print(Text(f"{worker.name} is drained: {worker.drained_reason}", style="yellow"))
