"""``farm webhooks``: endpoints, deliveries, and a receiver for developing a handler."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from farm import api_types
from farm.api_types import DeliveryState, DeliveryType
from farm.cli.choices import EventType
from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.jobs import age
from farm.cli.screen import open_console, say

if TYPE_CHECKING:
    from farm.client import Delivery, Endpoint

webhooks = typer.Typer(help="Manage webhooks, or receive them on this machine.")

_COLOURS = {"delivered": "green", "dead": "red", "pending": "cyan"}

EndpointId = Annotated[str, typer.Argument(metavar="ID", help="The endpoint's id, as in `farm webhooks`.")]
DeliveryId = Annotated[str, typer.Argument(metavar="ID", help="The delivery's id, which is its webhook-id.")]


Events = Annotated[
    list[EventType] | None,
    typer.Option(
        "--event", help="An event type; may be repeated. Default: the terminal events of jobs.", show_default=False
    ),
]


@webhooks.callback(invoke_without_command=True)
def _default(
    context: typer.Context,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Manage webhooks, or receive them on this machine. Without a command, list the endpoints."""
    if context.invoked_subcommand is None:
        ls(as_json=as_json, url=url, api_key=api_key, data_dir=data_dir)


# -- endpoints ---------------------------------------------------------------------------------------------------------


@webhooks.command()
def ls(
    limit: Annotated[int, typer.Option(min=1, help="Maximum number.")] = 50,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List the endpoints, newest first."""
    with connect(url, api_key, data_dir) as farm:
        found = list(farm.endpoints(limit=limit))
    if as_json:
        print_json([one.raw for one in found])
        return
    if not found:
        say("no endpoints: add one with `farm webhooks add URL`", file=sys.stderr)
        return
    rows = [
        (one.id, _health(one), one.url, ", ".join(one.events), one.description or ("a job's own" * one.one_off))
        for one in found
    ]
    _table(("id", "state", "url", "events", "description"), rows, "url")


@webhooks.command()
def add(
    target: Annotated[str, typer.Argument(metavar="URL", help="The URL that receives the events.")],
    event: Events = None,
    description: Annotated[str, typer.Option(help="A description.")] = "",
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="Also sign with a key pair (v1a, ed25519).")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Add an endpoint: a URL that receives events. Prints its signing secret."""
    with connect(url, api_key, data_dir) as farm:
        made = farm.add_endpoint(target, events=event or (), description=description, asymmetric=asymmetric)
    if as_json:
        print_json(made.raw)
        return
    say(f"{made.id} gets {', '.join(made.events)}; this secret signs them:", file=sys.stderr)
    say(made.secret)
    for public in made.public_keys:
        say(public)


@webhooks.command()
def show(
    endpoint_id: EndpointId,
    secret: Annotated[bool, typer.Option("--secret", help="Show its secrets, too.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Show an endpoint and its health."""
    with connect(url, api_key, data_dir) as farm:
        one = farm.endpoint(endpoint_id)
        secrets = farm.endpoint_secret(endpoint_id) if secret else None
    shown = one.raw | ({} if secrets is None else secrets.raw)
    if as_json:
        print_json(shown)
        return
    if secrets is not None:
        shown["previous"] = "\n".join(f"{text} until {end}" for text, end in secrets.previous)
    _grid(shown | {"events": ", ".join(one.events), "public_keys": "\n".join(one.public_keys)})


@webhooks.command()
def edit(
    endpoint_id: EndpointId,
    target: Annotated[str | None, typer.Option("--to", help="A new URL to send to.")] = None,
    event: Events = None,
    description: Annotated[str | None, typer.Option(help="A description.")] = None,
    enable: Annotated[bool | None, typer.Option("--enable/--disable", help="Enable or disable it.")] = None,
    asymmetric: Annotated[
        bool | None, typer.Option("--asymmetric/--no-asymmetric", help="Also sign with a key pair, or stop doing so.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Change an endpoint; omitted options stay as they are."""
    given: dict[str, Any] = {
        "url": target,
        "description": description,
        "events": event or None,
        "enabled": enable,
        "asymmetric": asymmetric,
    }
    with connect(url, api_key, data_dir) as farm:
        now = farm.edit_endpoint(endpoint_id, **{name: value for name, value in given.items() if value is not None})
    if as_json:
        print_json(now.raw)
    else:
        say(f"{now.id}  {_health(now)}  {now.url}  {', '.join(now.events)}")


@webhooks.command()
def rm(
    endpoint_id: EndpointId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Delete an endpoint and its delivery log."""
    with connect(url, api_key, data_dir) as farm:
        gone = farm.remove_endpoint(endpoint_id)
    if as_json:
        print_json(gone.raw)
    else:
        say(f"{gone.id} is deleted")


@webhooks.command()
def rotate(
    endpoint_id: EndpointId,
    hours: Annotated[float, typer.Option(min=0, max=168, help="How long the old secret also signs.")] = 24,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Give an endpoint a new secret, and print it."""
    with connect(url, api_key, data_dir) as farm:
        now = farm.rotate_secret(endpoint_id, overlap_seconds=round(hours * 3600))
    if as_json:
        print_json(now.raw)
        return
    say(f"the old secret signs for {hours:g} more hours; the new one:", file=sys.stderr)
    say(now.secret)


@webhooks.command("test")
def send_test(
    endpoint_id: EndpointId,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the response.")] = 10,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Send a test event and say what the endpoint answered; exit 1 if it was not delivered."""
    import time

    with connect(url, api_key, data_dir) as farm:
        sent = farm.delivery(farm.test_endpoint(endpoint_id).id)
        deadline = time.monotonic() + wait
        while not sent.attempts and time.monotonic() < deadline:
            time.sleep(0.1)
            sent = farm.delivery(sent.id)
    if as_json:
        print_json(sent.raw)
    elif not sent.attempts:
        say(f"{sent.id} was not attempted yet: is a deliverer running? `farm webhooks show-delivery` shows more")
    else:
        say(f"{sent.id}  {sent.state}  {_outcome(sent)}  {sent.attempts[0].seconds * 1000:.0f} ms")
    if sent.state != "delivered":
        raise typer.Exit(1)


# -- deliveries --------------------------------------------------------------------------------------------------------


@webhooks.command()
def deliveries(
    state: Annotated[DeliveryState | None, typer.Option(help="Only this state.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only to this endpoint.")] = None,
    job: Annotated[str | None, typer.Option(help="Only about this job.")] = None,
    event: Annotated[DeliveryType | None, typer.Option(help="Only this event type.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List deliveries, sent and waiting, newest event first."""
    with connect(url, api_key, data_dir) as farm:
        found = list(farm.deliveries(limit=limit, state=state, endpoint_id=endpoint, job_id=job, type=event))
    if as_json:
        print_json([one.raw for one in found])
        return
    if not found:
        say("no deliveries", file=sys.stderr)
        return
    rows = [
        (one.id, one.state, one.type, one.job_id or "", str(one.attempt_count), _outcome(one), age(one.created_at))
        for one in found
    ]
    _table(("id", "state", "event", "job", "attempts", "response", "age"), rows)


@webhooks.command()
def show_delivery(
    delivery_id: DeliveryId,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Show a delivery and its attempts."""
    with connect(url, api_key, data_dir) as farm:
        one = farm.delivery(delivery_id)
    if as_json:
        print_json(one.raw)
        return
    _grid({name: value for name, value in one.raw.items() if name != "attempts"})
    if one.attempts:
        _table(
            ("attempt", "at", "response", "ms", "body"),
            [
                (
                    str(tried.number),
                    tried.at.isoformat(timespec="milliseconds") if tried.at else "",
                    str(tried.status or tried.error),
                    f"{tried.seconds * 1000:.0f}",
                    " ".join(tried.response.split())[:200],
                )
                for tried in one.attempts
            ],
        )


@webhooks.command()
def resend(
    delivery_id: Annotated[str | None, typer.Argument(metavar="ID", help="The delivery's id.")] = None,
    all_dead: Annotated[bool, typer.Option("--all-dead", help="All dead deliveries.")] = False,
    endpoint: Annotated[str | None, typer.Option(help="With --all-dead: only to this endpoint.")] = None,
    since: Annotated[str | None, typer.Option(help="With --all-dead: only from this time on (ISO 8601).")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Send a delivery again under the same id, or all dead deliveries."""
    from farm.errors import BadInput

    if (delivery_id is None) != all_dead:
        raise BadInput.of("ID", delivery_id, "give the id of a delivery, or --all-dead")
    with connect(url, api_key, data_dir) as farm:
        if delivery_id is None:
            count = farm.resend_dead(endpoint_id=endpoint, created_after=since)
            if as_json:
                print_json({"count": count})
            else:
                say(f"{count} are sent again")
            return
        again = farm.resend(delivery_id)
    if as_json:
        print_json(again.raw)
    else:
        say(f"{again.id} is sent again to {again.endpoint_id}")


# -- a receiver --------------------------------------------------------------------------------------------------------


@webhooks.command()
def listen(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any free port.")] = 0,
    event: Annotated[
        list[EventType] | None,
        typer.Option("--event", help="An event type; may be repeated. Default: all.", show_default=False),
    ] = None,
    forward: Annotated[
        str | None, typer.Option(help="Forward each request to this URL, and return its response to the farm.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per event and line.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Receive events here and print them, with their signatures checked, until Ctrl-C."""
    from farm.cli.webhook_listener import listen as run

    with connect(url, api_key, data_dir) as farm:
        run(farm, port, event or get_args(api_types.EventType), forward, as_json=as_json)


# -- showing -----------------------------------------------------------------------------------------------------------


def _health(one: Endpoint) -> str:
    if not one.enabled:
        return f"disabled ({one.disabled_reason})" if one.disabled_reason else "disabled"
    return f"failing for {age(one.failing_since)}" if one.failing_since else "enabled"


def _outcome(one: Delivery) -> str:
    return str(one.status or one.error or "")


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], wide: str | None = None) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        # ids must stay whole to be copied
        table.add_column(heading, no_wrap=heading in {"id", "job", "state", "at"}, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    console = open_console()
    (console if console.is_terminal and wide else open_console(width=250)).print(table)


def _grid(fields: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in fields.items():
        if value not in (None, "", [], {}):
            grid.add_row(name, Text(str(value), style=_COLOURS.get(str(value), "")))
    open_console(soft_wrap=True).print(grid)
