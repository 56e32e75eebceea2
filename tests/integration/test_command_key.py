"""``docker compose exec api farm …``: a command that has the database needs no key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from farm.local.bootstrap import COMMAND_KEY, TENANT
from farm.store.tenants import KEY_TEXT
from tests.api_server import running
from tests.conftest import TestServers


def test_whoever_has_the_database_is_an_admin_without_arguments(
    servers: TestServers, farm_env: dict[str, str], tmp_path: Path
) -> None:
    from farm.settings import settings

    with running(settings()) as api:
        environment = {**os.environ, **farm_env, "FARM_API_PORT": api.url.rpartition(":")[2]}

        def farm(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "farm.cli", *arguments],
                env=environment | more, cwd=tmp_path, capture_output=True, text=True, timeout=60,
            )  # fmt: skip

        for command in (("workers",), ("models",), ("tenants",), ("workers", "tokens")):
            done = farm(*command, "--json")
            assert done.returncode == 0, done.stderr
            json.loads(done.stdout)
        # its key is gone with it, and is no first key
        with api.store.begin() as unit:
            tenant = unit.tenants.by_name(TENANT)
            assert tenant is not None
            assert unit.tenants.keys(tenant.id) == []
            unit.tenants.create_key(tenant.id, f"{COMMAND_KEY} that was killed", frozenset())
        first = farm("init", "--show-key", "--json")
        assert KEY_TEXT.fullmatch(json.loads(first.stdout)["api_key"]), first.stderr
        # a key that is given counts
        refused = farm("workers", FARM_API_KEY="farm_00000000000000000000000000000000_x")
        assert refused.returncode == 2
        assert "API key" in refused.stderr
