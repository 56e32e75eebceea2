"""How a command finds its farm: by option, by environment, or the one that runs in a data directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli import profiles
from farm.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from farm.client import Farm

Url = Annotated[
    str | None, typer.Option("--url", help="The farm's address. Default: FARM_URL, else the farm that runs here.")
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="The API key. Default: FARM_API_KEY, else that of the farm that runs here."),
]
DataDir = Annotated[
    Path, typer.Option("--data-dir", envvar="FARM_DATA_DIR", help="Where `farm up` keeps the farm that runs here.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]

HERE = Path(".farm")


class NoFarm(Unavailable):
    """No farm was named and none runs here."""

    def __init__(self) -> None:
        super().__init__(
            "no farm is running here: start one with `farm up`, keep another's address with `farm login`, "
            "or set FARM_URL and FARM_API_KEY"
        )


def connect(url: str | None, api_key: str | None, data_dir: Path) -> Farm:
    """A client of the selected farm. Raises `NoFarm` or `BadInput`."""
    from farm.client import Farm

    return Farm(*address(url, api_key, data_dir))


def address(url: str | None, api_key: str | None, data_dir: Path) -> tuple[str, str]:
    """The address and the API key of the selected farm. Raises `NoFarm` or `BadInput`.

    By options and environment; else by the profile that ``FARM_PROFILE`` names; else the farm that runs here; else the
    one of ``FARM_DATABASE_URL``, where a key is made for this command; else the default profile of `farm login`.
    """
    url = url or os.environ.get("FARM_URL")
    api_key = api_key or os.environ.get("FARM_API_KEY")
    if not (url and api_key):
        profile = os.environ.get("FARM_PROFILE")
        kept = None if url else profiles.load(profile)
        if profile and not url and kept is None:
            known = ", ".join(profiles.names()) or "none"
            raise BadInput.of("profile", profile, f"there is no profile {profile!r}; there are: {known}")
        if profile and kept is not None:
            return kept[0], api_key or kept[1]
        found = running(data_dir)
        if not found and os.environ.get("FARM_DATABASE_URL"):
            from farm.cli import database_key

            url = url or f"http://127.0.0.1:{os.environ.get('FARM_API_PORT') or 8000}"
            found = {"url": url.rstrip("/"), "api_key": api_key or database_key.make()}
        if not found and kept is not None:
            return kept[0], api_key or kept[1]
        if url and found.get("url") != url.rstrip("/"):
            raise BadInput.of("api key", None, f"none is known for {url}: give --api-key, or set FARM_API_KEY")
        if not found:
            raise NoFarm
        url, api_key = found["url"], api_key or found["api_key"]
    return url, api_key


def print_json(value: object) -> None:
    """The one value that ``--json`` prints."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def running(data_dir: Path) -> dict[str, Any]:
    """The addresses of the farm that runs in that directory; empty when none does."""
    from farm.local.state import DataDirectory

    run = DataDirectory(data_dir).run()
    if run is None or not run.supervisor.alive() or not run.addresses.get("url"):
        return {}
    return run.addresses
