"""A real PgBouncer before the tests' PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests import programs

NOBODY = 65534


@contextmanager
def pgbouncer(database_url: str, directory: Path, mode: str, *lines: str, size: int = 5) -> Iterator[str]:
    """Run PgBouncer with its defaults, this pool mode and further lines; yields the database's URL through it."""
    program = programs.find("pgbouncer")
    server = urlsplit(database_url)
    port = programs.free_port()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "users.txt").write_text(f'"{server.username}" "{server.password}"\n')
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={server.hostname} port={server.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {directory}/users.txt\n"
        f"pool_mode = {mode}\ndefault_pool_size = {size}\n" + "".join(f"{line}\n" for line in lines)
    )
    # it refuses to run as root, and pytest's folders are closed to others
    user = NOBODY if os.geteuid() == 0 else None
    if user is not None:
        for path in (directory, *directory.parents):
            if not path.stat().st_mode & 0o001:
                path.chmod(path.stat().st_mode | 0o011)
        for name in ("users.txt", "pgbouncer.ini"):
            (directory / name).chmod(0o644)
    argv = (program, str(directory / "pgbouncer.ini"))
    with programs.running(argv, port, directory / "log", user=user):
        yield server._replace(netloc=f"{server.username}:{server.password}@127.0.0.1:{port}").geturl()
