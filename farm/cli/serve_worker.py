"""``farm worker``: run one worker, which owns one device."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Annotated

import typer

from farm.errors import MissingExtra


def worker(
    celery_options: Annotated[
        list[str] | None, typer.Argument(help="Options for Celery's own worker command, after `--`.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="The device: 0, cuda:0, a GPU-… UUID, cpu, cpu1 or mps. Several with commas, or all: one worker each. "
            "Default: the first one found."
        ),
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="FARM_JOIN_URL",
            help="Join the farm at this URL, which sends the addresses of its servers.",
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="The token that `farm up --listen` prints; FARM_JOIN_TOKEN by default.")
    ] = None,
) -> None:
    """Render jobs on one device, or with a worker for each of several, until stopped."""
    from farm.local import worker_supervisor

    missing = [name for name in ("torch", "diffusers", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra("a worker", ", ".join(missing), "worker")
    if join is not None:
        from farm.cli.enroll import join as join_farm

        join_farm(join, token)
        os.environ.pop("FARM_JOIN_URL", None)  # a worker that this process starts has joined
    device = device or os.environ.get("FARM_DEVICE")
    several = worker_supervisor.chosen(device)
    if several is not None:
        worker_supervisor.supervise(several, celery_options or ())
        return
    if device:
        os.environ["FARM_DEVICE"] = device
    # Workers of one farm do not need each other: without gossip and mingle their number costs nothing.
    options = ["--without-gossip", "--without-mingle", "--loglevel", "WARNING", *(celery_options or ())]
    sys.stdout.flush()
    sys.stderr.flush()
    # The same process becomes Celery's, so a supervisor's signals and waits reach it.
    os.execv(sys.executable, [sys.executable, "-m", "celery", "-A", "workers.app", "--quiet", "worker", *options])  # noqa: S606
