"""``farm storage``: run the S3 server of ``farm up`` by itself, for a farm in containers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def storage(
    data_dir: Annotated[Path, typer.Option(help="Where the objects lie.")] = Path("/data"),
    host: Annotated[str, typer.Option(help="The address of this machine to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The S3 port.", min=1, max=65535)] = 8333,
) -> None:
    """Serve S3. A PUT is answered when the object survives a power cut; the index is in FARM_DATABASE_URL's server."""
    from farm.local.storage_server import StorageServer
    from farm.log import configure
    from farm.settings import settings

    configure(settings(), "storage")
    StorageServer(settings(), data_dir, host, port).run()
