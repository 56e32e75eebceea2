"""``farm status``: the health of each part of a farm, the one that runs here or another one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from farm.cli.connect import HERE, ApiKey, DataDir, Url, connect, print_json
from farm.cli.screen import open_console
from farm.errors import FarmError

if TYPE_CHECKING:
    from farm.local.health import PartHealth

_COLOURS: Final = {
    "healthy": "green",
    "ok": "green",
    "online": "green",
    "starting": "yellow",
    "draining": "yellow",
}


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Show each part's health: of the farm in the data directory, or of the one that --url or FARM_URL names.

    Exits with 1 unless all are healthy.
    """
    from farm.local.state import DataDirectory

    elsewhere = url or (os.environ.get("FARM_URL") if DataDirectory(data_dir).run() is None else None)
    healthy = _remote(elsewhere, api_key, data_dir, as_json=as_json) if elsewhere else _local(data_dir, as_json=as_json)
    if not healthy:
        raise typer.Exit(1)


def _remote(url: str, api_key: str | None, data_dir: Path, *, as_json: bool) -> bool:
    """Show what a farm's API says of itself and of the workers."""
    with connect(url, api_key, data_dir) as farm:
        version, parts, workers = farm.health()["version"], farm.readiness(), farm.workers()
    ready = parts.pop("status") == "ok"
    states = Counter("stopping" if worker.stopping else worker.state for worker in workers)
    if as_json:
        print_json({"url": url, "version": version, "parts": parts, "workers": dict(states)})
    else:
        rows = [("api", "ok", f"{url}, version {version}"), *((name, state, "") for name, state in parts.items())]
        rows += [("workers", state, str(count)) for state, count in sorted(states.items())]
        _table(("part", "state", ""), rows if states else [*rows, ("workers", "none", "")])
    return ready and states["online"] > 0


def _local(data_dir: Path, *, as_json: bool) -> bool:
    """Show the processes of the farm that runs in a data directory."""
    from farm.local import health
    from farm.local.health import Condition
    from farm.local.servers import read_settings
    from farm.local.state import DataDirectory

    directory = DataDirectory(data_dir)
    try:
        run = directory.run()
        parts = health.parts(directory, read_settings()) if run is not None else []
    except FarmError as error:
        typer.echo(f"farm: {error}", err=True)
        return False
    phase = run.phase if run is not None and (run.phase == "failed" or health.supervised(run)) else "down"
    if as_json:
        print_json({"data_dir": str(directory.path), "phase": phase, "parts": [asdict(part) for part in parts]})
    elif run is None:
        typer.echo(f"no farm is running in {directory.path}: start it with `farm up`", err=True)
    else:
        _table(("part", "state", "pid", "address", "uptime", "memory"), [_row(part) for part in parts])
        if phase == "down":
            typer.echo(
                "the supervisor was killed: `farm up` cleans up after it, `farm down` ends what is left", err=True
            )
        elif run.message:
            typer.echo(f"{phase}: {run.message}", err=True)
    return bool(parts) and phase == "ready" and all(part.condition is Condition.HEALTHY for part in parts)


def _row(part: PartHealth) -> tuple[str, ...]:
    return (
        part.name,
        f"{part.condition} (restarted {part.restarts}×)" if part.restarts else str(part.condition),
        str(part.pid or ""),
        part.address,
        duration(part.uptime_seconds),
        "" if part.memory_bytes is None else f"{part.memory_bytes / 2**20:.0f} MiB",
    )


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(
            heading, overflow="fold", justify="right" if heading in {"pid", "uptime", "memory"} else "left"
        )
    for name, state, *rest in rows:
        colour = _COLOURS.get(state.partition(" ")[0], "red")
        table.add_row(name, Text(state, style=colour), *rest)
    open_console().print(table)


def duration(seconds: float | None) -> str:
    """``42 s``, ``7 min``, ``3 h 5 min``, ``2 d 4 h``."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
