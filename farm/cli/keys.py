"""``farm keys``: the tenant's API keys."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.choices import Scope
from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.jobs import age
from farm.cli.screen import open_console, say

if TYPE_CHECKING:
    from farm.client.models import Key

Tenant = Annotated[str | None, typer.Option(help="The tenant's id. Default: the key's own tenant.")]
keys = typer.Typer(help="List, create, rotate and revoke API keys.")


@keys.callback(invoke_without_command=True)
def _default(
    context: typer.Context,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List, create, rotate and revoke API keys. Without a command, list them."""
    if context.invoked_subcommand is None:
        ls(None, as_json, url, api_key, data_dir)


@keys.command()
def ls(
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List the keys, without their secrets."""
    with connect(url, api_key, data_dir) as farm:
        found = farm.keys(tenant)
    if as_json:
        print_json([key.raw for key in found])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("id", no_wrap=True)
    for heading in ("name", "scopes", "made", "state"):
        table.add_column(heading)
    for key in found:
        state = f"revoked {age(key.revoked_at)} ago" if key.revoked_at else "live"
        table.add_row(key.id, key.name, ", ".join(key.scopes), f"{age(key.created_at)} ago", state)
    open_console().print(table)


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="A description.")],
    scope: Annotated[list[Scope] | None, typer.Option(help="A scope; may be repeated.")] = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Create a key with the scopes submit and read, or those given. The key is shown once."""
    with connect(url, api_key, data_dir) as farm:
        key = farm.make_key(name, tuple(scope or ()), tenant)
    _show(key, as_json)


@keys.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as in `farm keys`.")],
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Create a second key with the same name and scopes; both are valid until you revoke the old one."""
    with connect(url, api_key, data_dir) as farm:
        key = farm.rotate_key(key_id, tenant)
    _show(key, as_json)


def _show(key: Key, as_json: bool) -> None:
    if as_json:
        print_json(key.raw)
        return
    may = ", ".join(key.scopes)
    say(f"{key.id} of tenant {key.tenant_id} may {may}; the key is shown only once:", file=sys.stderr)
    say(key.text)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as in `farm keys`.")],
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Revoke a key at once."""
    with connect(url, api_key, data_dir) as farm:
        key = farm.revoke_key(key_id, tenant)
    if as_json:
        print_json(key.raw)
    else:
        say(f"{key.id} of tenant {key.tenant_id} is revoked")
