"""The certificate authorities that the farm trusts: the system's, and those of ``FARM_CA_FILE``."""

from __future__ import annotations

import atexit
import ssl
import tempfile
from functools import cache
from pathlib import Path

import certifi
import httpx2


@cache
def context(ca_file: Path | None) -> ssl.SSLContext:
    """A client's context. Reading authorities takes 20 ms and more, so all clients of a process share it."""
    made = httpx2.create_ssl_context(trust_env=False)
    if ca_file is not None:
        made.load_verify_locations(ca_file)
    return made


@cache
def bundle(ca_file: Path) -> str:
    """A file with all of them, for libraries that take one file in place of the system's authorities."""
    with tempfile.NamedTemporaryFile("wb", prefix="farm-ca-", suffix=".pem", delete=False) as file:
        file.write(Path(certifi.where()).read_bytes() + b"\n" + ca_file.read_bytes())
    atexit.register(Path(file.name).unlink, missing_ok=True)
    return file.name
