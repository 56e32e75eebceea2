"""``farm status``: how each part of the farm on this machine does."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from farm.cli.up import DataDir
from farm.errors import FarmError
from farm.local import health
from farm.local.health import Condition, PartHealth
from farm.local.servers import read_settings
from farm.local.state import DataDirectory

_COLOURS = {
    Condition.HEALTHY: "green",
    Condition.STARTING: "yellow",
    Condition.RESTARTING: "red",
    Condition.DOWN: "red",
}


def status(
    data_dir: DataDir = Path(".farm"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show each part: its state, process, address, uptime and memory. Exits 1 unless all are healthy."""
    directory = DataDirectory(data_dir)
    try:
        run = directory.run()
        parts = health.parts(directory, read_settings()) if run is not None else []
    except FarmError as error:
        typer.echo(f"farm: {error}", err=True)
        raise typer.Exit(1) from None
    phase = run.phase if run is not None and (run.phase == "failed" or health.supervised(run)) else "down"
    if as_json:
        print(json.dumps({"data_dir": str(directory.path), "phase": phase, "parts": [asdict(part) for part in parts]}))
    elif run is None:
        typer.echo(f"no farm is running in {directory.path}: start it with `farm up`", err=True)
    else:
        _show(parts)
        if phase == "down":
            typer.echo(
                "the supervisor was killed: `farm up` cleans up after it, `farm down` ends what is left", err=True
            )
        elif run.message:
            typer.echo(f"{phase}: {run.message}", err=True)
    if not parts or phase != "ready" or any(part.condition is not Condition.HEALTHY for part in parts):
        raise typer.Exit(1)


def _show(parts: list[PartHealth]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("part", "state", "pid", "address", "uptime", "memory"):
        table.add_column(
            heading, overflow="fold", justify="right" if heading in {"pid", "uptime", "memory"} else "left"
        )
    for part in parts:
        again = f" (restarted {part.restarts}×)" if part.restarts else ""
        table.add_row(
            part.name,
            Text(f"{part.condition}{again}", style=_COLOURS[part.condition]),
            str(part.pid or ""),
            part.address,
            duration(part.uptime_seconds),
            "" if part.memory_bytes is None else f"{part.memory_bytes / 2**20:.0f} MiB",
        )
    Console(highlight=False).print(table)


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
