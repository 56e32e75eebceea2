"""``farm tenants`` and ``farm usage``: tenants, their limits and their usage."""

from __future__ import annotations

import csv
import sys
from typing import Annotated, Any, Final

import typer

from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.screen import open_console, say
from farm.errors import BadInput

tenants = typer.Typer(help="List, create, change and remove tenants.")

Name = Annotated[str, typer.Argument(help="The tenant's name or id.")]
Weight = Annotated[float | None, typer.Option(help="Its share of the farm, relative to other tenants.")]
Cap = Annotated[str | None, typer.Option(metavar="NUMBER|none", help="Maximum number of waiting jobs.")]
Running = Annotated[str | None, typer.Option(metavar="NUMBER|none", help="Maximum number of jobs at workers at once.")]
Device = Annotated[str | None, typer.Option(metavar="NUMBER|none", help="Maximum seconds on devices per day (UTC).")]
Stored = Annotated[str | None, typer.Option(metavar="NUMBER|none", help="Maximum bytes of outputs and inputs.")]
Days = Annotated[
    str | None, typer.Option(metavar="NUMBER|none", help="Days for which ended jobs and their outputs are kept.")
]
COLUMNS: Final = ("day", "tenant", "model", "jobs", "outputs", "bytes", "device_seconds")


@tenants.callback(invoke_without_command=True)
def _default(
    context: typer.Context,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List, create, change and remove tenants. Without a command, list them. Needs a key with the scope admin."""
    if context.invoked_subcommand is None:
        ls(as_json, url, api_key, data_dir)


@tenants.command()
def ls(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = HERE) -> None:
    """List the tenants with their limits."""
    with connect(url, api_key, data_dir) as farm:
        _show(list(farm.tenants()), as_json)


@tenants.command()
def create(
    name: Annotated[str, typer.Argument(help="The tenant's name, unique in the farm.")],
    weight: Weight = None,
    max_queued: Cap = None,
    max_running: Running = None,
    device_seconds_per_day: Device = None,
    storage_bytes: Stored = None,
    retention_days: Days = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Create a tenant; give it a key with `farm keys create NAME --tenant ID`."""
    caps = _caps(weight, max_queued, max_running, device_seconds_per_day, storage_bytes, retention_days)
    with connect(url, api_key, data_dir) as farm:
        _show(farm.make_tenant(name, **caps), as_json)


@tenants.command(name="set")
def change(
    tenant: Name,
    weight: Weight = None,
    max_queued: Cap = None,
    max_running: Running = None,
    device_seconds_per_day: Device = None,
    storage_bytes: Stored = None,
    retention_days: Days = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Change a tenant's weight and limits; `none` removes a limit."""
    caps = _caps(weight, max_queued, max_running, device_seconds_per_day, storage_bytes, retention_days)
    with connect(url, api_key, data_dir) as farm:
        _show(farm.change_tenant(_id(farm, tenant), **caps), as_json)


@tenants.command()
def rm(tenant: Name, url: Url = None, api_key: ApiKey = None, data_dir: DataDir = HERE) -> None:
    """Remove a tenant without jobs and files, with its keys and its usage."""
    with connect(url, api_key, data_dir) as farm:
        tenant_id = _id(farm, tenant)
        farm.remove_tenant(tenant_id)
    say(f"{tenant_id} is removed")


def usage(
    first: Annotated[str | None, typer.Option("--from", metavar="DAY", help="First day, YYYY-MM-DD, UTC.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day; today by default.")] = None,
    tenant: Annotated[str | None, typer.Option(help="A tenant's id, or `all`; the key's own by default.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Show device-seconds, outputs and bytes by day, tenant and model; the last 30 days by default."""
    with connect(url, api_key, data_dir) as farm:
        found = farm.usage(first, last, tenant)
    if as_json:
        print_json(list(found))
    elif as_csv:
        table = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(found)
    else:
        _table(COLUMNS, list(found))


def _caps(weight: float | None, *caps: str | None) -> dict[str, Any]:
    names = ("max_queued", "max_running", "device_seconds_per_day", "storage_bytes", "retention_days")
    found: dict[str, Any] = {} if weight is None else {"weight": weight}
    for name, text in zip(names, caps, strict=True):
        if text is None:
            continue
        try:
            found[name] = None if text == "none" else (float if name == "device_seconds_per_day" else int)(text)
        except ValueError:
            option = "--" + name.replace("_", "-")
            raise BadInput.of(option, text, f"{text!r} must be a number, or `none` for no limit") from None
    return found


def _id(farm: Any, name: str) -> str:
    if name.startswith("ten_"):
        return name
    found = next((one["id"] for one in farm.tenants() if one["name"] == name), None)
    if found is None:
        raise BadInput.of("tenant", name, f"there is no tenant {name!r}; `farm tenants` lists them")
    return str(found)


def _show(found: Any, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    columns = ("id", "name", "weight", "max_queued", "max_running", "device_seconds_per_day", "storage_bytes",
               "retention_days")  # fmt: skip
    _table(columns, found if isinstance(found, list) else [found])


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text("–" if row[name] is None else str(row[name])) for name in columns))
    open_console().print(table)
