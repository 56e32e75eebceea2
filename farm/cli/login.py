"""``farm login``, ``logout`` and ``open``: which farm is used where no address is given."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from farm.cli import profiles
from farm.cli.connect import HERE, ApiKey, DataDir, Url, address
from farm.cli.screen import say
from farm.errors import BadInput

Profile = Annotated[
    str, typer.Option("--profile", envvar="FARM_PROFILE", help="The name under which the address and the key are kept.")
]


def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="The farm's address.")],
    api_key: Annotated[
        str | None, typer.Option("--api-key", help="The API key; asked for, without showing it, if absent.")
    ] = None,
    profile: Profile = profiles.DEFAULT,
) -> None:
    """Keep a farm's address and API key in your home directory, for all commands without FARM_URL."""
    from farm.client import Farm

    if not url.startswith(("http://", "https://")):
        raise BadInput.of("url", url, f"{url!r} is no address: write it as https://farm.example.com")
    key = api_key or typer.prompt("API key", hide_input=True, err=True)
    with Farm(url, key) as farm:
        list(farm.list(limit=1))  # a wrong key or address is refused now
    path = profiles.save(profile, url.rstrip("/"), key)
    used = "used from now on" if profile == profiles.DEFAULT else f"used with FARM_PROFILE={profile}"
    say(f"{url.rstrip('/')} is kept in {path} and {used}")


def logout(profile: Profile = profiles.DEFAULT) -> None:
    """Forget a farm's address and API key. The key itself stays valid: `farm keys revoke` ends it."""
    if not profiles.remove(profile):
        raise BadInput.of("profile", profile, f"there is no profile {profile!r}")
    say(f"{profile} is forgotten")


def open_dashboard(url: Url = None, api_key: ApiKey = None, data_dir: DataDir = HERE) -> None:
    """Open the dashboard in a browser, and print its address."""
    there = f"{address(url, api_key, data_dir)[0].rstrip('/')}/farm"
    print(there)
    webbrowser.open(there)
