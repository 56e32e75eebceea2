"""``farm audit``: who changed what."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json
from farm.cli.screen import say


def audit(
    key: Annotated[str | None, typer.Option("--key", help="Only of this API key: its id or its name.")] = None,
    q: Annotated[str | None, typer.Option("--search", "-q", help="Only where action or target contain this.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number.")] = 50,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """List changes by the API and the dashboard, newest first. Needs a key with the scope operate."""
    with connect(url, api_key, data_dir) as farm:
        found = list(farm.audit(key=key, q=q, limit=limit))
    if as_json:
        print_json(found)
        return
    for one in found:
        print(f"{one['at'][:19].replace('T', ' ')}  {one['key_name']}  {one['action']}  {one['target']}")
    if not found:
        say("no changes", file=sys.stderr)
