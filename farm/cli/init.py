"""``farm init``: what a farm on servers of one's own needs before its services can start."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def init(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Migrate the database, create the bucket, and print a first API key if there is none.

    Safe to run again: before every upgrade, and as the first container of a deployment.
    """
    from farm.local.bootstrap import initialise
    from farm.settings import settings

    revision, key = initialise(settings())
    if as_json:
        print(json.dumps({"revision": revision, "api_key": key}))
        return
    print(f"the database is at revision {revision}, and the bucket {settings().s3_bucket} accepts objects")
    if key is None:
        print("API keys exist already: create more with `farm keys create`", file=sys.stderr)
    else:
        print(f"the first API key, shown only once:\n{key}")
