"""``farm init``: what a farm on servers of one's own needs before its services can start."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from farm.errors import BadInput


def init(
    show_key: Annotated[
        bool, typer.Option("--show-key", help="If the farm has no API key yet, create one and print it.")
    ] = False,
    key_file: Annotated[
        Path | None,
        typer.Option(help="If the farm has no API key yet, create one and write it to this new file, for its owner."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Migrate the database, create the bucket, and create a first API key where that is asked for.

    Safe to run again: before every upgrade, and as the first container of a deployment. Output often ends in a log, so
    no key is created or printed unless you say where it goes.
    """
    from farm.local.bootstrap import initialise
    from farm.settings import settings

    descriptor = None if key_file is None else _private(key_file)
    key = None
    try:
        revision, key = initialise(settings(), with_key=show_key or descriptor is not None)
    finally:
        if descriptor is not None and key_file is not None:
            with os.fdopen(descriptor, "w") as file:
                file.write(key or "")
            if key is None:
                key_file.unlink()
    if as_json:
        print(json.dumps({"revision": revision, "api_key": key if show_key else None}))
        return
    print(f"the database is at revision {revision}, and the bucket {settings().s3_bucket} accepts objects")
    if key is not None:
        print(f"the first API key, shown only once:\n{key}" if show_key else f"the first API key is in {key_file}")
    elif show_key or key_file is not None:
        print("API keys exist already: create more with `farm keys create`", file=sys.stderr)


def _private(path: Path) -> int:
    """A new file for its owner alone. Raises `BadInput` where there is one."""
    try:
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise BadInput.of("key-file", str(path), f"cannot be created: {error.strerror}") from error
