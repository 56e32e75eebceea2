"""The certificate authorities that the farm trusts: the system's, and those of ``FARM_CA_FILE``."""

from __future__ import annotations

import atexit
import os
import ssl
import tempfile
from functools import cache
from pathlib import Path

import httpx2

from farm.errors import BadInput


@cache
def context(ca_file: Path | None, *, trust_env: bool = False) -> ssl.SSLContext:
    """A client's context. Reading authorities takes 20 ms and more, so all clients of a process share it.

    ``trust_env``: ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` replace the system's authorities.
    """
    made = httpx2.create_ssl_context(trust_env=trust_env)
    if ca_file is not None:
        made.load_verify_locations(ca_file)
    return made


def context_of_environment(*, trust_env: bool = False) -> ssl.SSLContext | None:
    """The context of a client that reads no `Settings`; None: ``FARM_CA_FILE`` is not set. Raises `BadInput`."""
    ca_file = os.environ.get("FARM_CA_FILE")
    if not ca_file:
        return None
    try:
        return context(Path(ca_file).absolute(), trust_env=trust_env)
    except OSError as error:  # ssl.SSLError, too
        raise BadInput.of("FARM_CA_FILE", ca_file, f"is no file of PEM certificates ({error.strerror})") from error


@cache
def bundle(ca_file: Path) -> str:
    """A file with all of them, for libraries that take one file in place of the system's authorities."""
    import certifi  # noqa: PLC0415 - not in the base installation, whose client needs the context alone

    with tempfile.NamedTemporaryFile("wb", prefix="farm-ca-", suffix=".pem", delete=False) as file:
        file.write(Path(certifi.where()).read_bytes() + b"\n" + ca_file.read_bytes())
    atexit.register(Path(file.name).unlink, missing_ok=True)
    return file.name
