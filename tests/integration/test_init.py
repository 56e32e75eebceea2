"""``farm init`` on servers of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from farm.store.tenants import KEY_TEXT
from farm.store.unit_of_work import Store, make_engine
from tests.conftest import TestServers


def init(environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "farm.cli", "init", "--json", "--show-key"],
        env={**os.environ, **environment}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_empty_database_becomes_a_farm_with_one_first_key_and_again_changes_nothing(servers: TestServers) -> None:
    servers.postgres.create_database("to_init")
    environment = servers.env(database_url=servers.postgres.url("to_init"))
    first, again = init(environment), init(environment)
    assert again == {"revision": first["revision"], "api_key": None}
    store = Store(make_engine(environment["FARM_DATABASE_URL"], pool=1))
    try:
        with store.begin() as unit:
            assert unit.tenants.authenticate(first["api_key"]).name == "farm init"
    finally:
        store.close()
        servers.postgres.drop_database("to_init")


def test_no_key_is_made_or_printed_unless_asked_for(servers: TestServers, tmp_path: Path) -> None:
    servers.postgres.create_database("to_init_quietly")
    environment = {**os.environ, **servers.env(database_url=servers.postgres.url("to_init_quietly"))}
    command = [sys.executable, "-m", "farm.cli", "init"]
    file = tmp_path / "key"
    try:
        quiet = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert quiet.returncode == 0, quiet.stderr
        assert "farm_" not in quiet.stdout + quiet.stderr
        kept = subprocess.run(
            [*command, "--key-file", str(file)], env=environment, capture_output=True, text=True, timeout=60
        )
        assert kept.returncode == 0, kept.stderr
        assert "farm_" not in kept.stdout + kept.stderr
        assert file.stat().st_mode & 0o777 == 0o600
        assert KEY_TEXT.fullmatch(file.read_text())
        again = subprocess.run(
            [*command, "--key-file", str(file)], env=environment, capture_output=True, text=True, timeout=60
        )
        assert again.returncode == 2
        assert "cannot be created: File exists" in again.stderr
        assert KEY_TEXT.fullmatch(file.read_text())
    finally:
        servers.postgres.drop_database("to_init_quietly")
