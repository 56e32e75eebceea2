"""``farm outputs check``: whether the storage has what the farm recorded, and bringing back what it has not."""

from __future__ import annotations

import sys
import time
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from farm.cli import gallery
from farm.cli.connect import HERE, ApiKey, AsJson, DataDir, Url, connect, print_json

if TYPE_CHECKING:
    from farm.client import Farm
    from farm.client.models import DamagedOutput, OutputRepair

outputs = typer.Typer(
    help="Find, mark, download and delete outputs; check and repair the object storage.", no_args_is_help=True
)

REPAIR_JOBS: Final = 100  #: asked for at once
POLL_SECONDS: Final = 1.0

Since = Annotated[
    datetime | None,
    typer.Option(
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"],
        help="Only outputs of jobs that ended then or later; your local time without an offset.",
    ),
]


outputs.command(name="list")(gallery.list_outputs)
outputs.command(name="label")(gallery.label)
outputs.command(name="download")(gallery.download)
outputs.command(name="delete")(gallery.delete)


@outputs.callback()
def _outputs() -> None:
    pass


@outputs.command()
def check(
    since: Since = None,
    batch: Annotated[str | None, typer.Option(metavar="ID", help="Only outputs of this batch.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read each object and compare its SHA-256.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Render what is missing again and store it if its bytes are the same.")
    ] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
    data_dir: DataDir = HERE,
) -> None:
    """Look for every output of the jobs that succeeded. Ends with 1 if any is missing or damaged (and not repaired).

    Run it after a restore of the database or of the bucket. Needs a key with the scope operate.
    """
    with connect(url, api_key, data_dir) as farm:
        checked, damaged = _check(farm, None if since is None else since.astimezone(), batch, deep=deep)
        repairs = _repair(farm, damaged) if repair and damaged else []
    impossible = [one for one in repairs if one.state != "repaired"]
    repaired = {one.job_id for one in repairs} - {one.job_id for one in impossible}
    left = [one for one in damaged if one.job_id not in repaired]
    if as_json:
        print_json(
            {
                "checked": checked,
                "damaged": [one.raw for one in damaged],
                "repaired": sorted(repaired),
                "impossible": [one.raw for one in impossible],
            }
        )
    else:
        for one in left if repair else damaged:
            print(f"{one.job_id}/{one.index}: {one.damage}  {one.key}")
        for failed in impossible:
            print(f"{failed.job_id}: not repaired: {failed.reason}")
        print(f"{checked} outputs checked, {len(damaged)} missing or damaged", end="")
        print(f", {len(damaged) - len(left)} repaired" if repair else "")
    if left:
        raise typer.Exit(1)


def _check(farm: Farm, since: datetime | None, batch: str | None, *, deep: bool) -> tuple[int, list[DamagedOutput]]:
    checked, cursor = 0, None
    damaged: list[DamagedOutput] = []
    while True:
        page = farm.check_outputs(since=since, batch_id=batch, deep=deep, cursor=cursor)
        checked += page.checked
        damaged += page.damaged
        cursor = page.next_cursor
        if cursor is None:
            return checked, damaged
        print(f"\r{checked} outputs checked", end="", file=sys.stderr)


def _repair(farm: Farm, damaged: list[DamagedOutput]) -> list[OutputRepair]:
    """Ask until each repair has ended; an interrupt leaves the renderings to the farm, and a next run goes on."""
    run = uuid.uuid4().hex
    waiting = list(dict.fromkeys(one.job_id for one in damaged))
    ended: list[OutputRepair] = []
    while waiting:
        again: list[str] = []
        for start in range(0, len(waiting), REPAIR_JOBS):
            for one in farm.repair_outputs(run, waiting[start : start + REPAIR_JOBS]):
                if one.state == "rendering":
                    again.append(one.job_id)
                else:
                    ended.append(one)
        waiting = again
        if waiting:
            print(f"\r{len(ended)} jobs repaired or given up, {len(waiting)} being rendered", end="", file=sys.stderr)
            time.sleep(POLL_SECONDS)
    return ended
