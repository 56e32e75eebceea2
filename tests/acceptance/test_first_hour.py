"""The commands of docs/operations/first-hour.md, on a PgBouncer, Sentinels and an S3 server of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from farm.store.migrate import head
from tests import programs
from tests.conftest import TestServers
from tests.pooler import pgbouncer
from tests.tls import Authority, terminate
from tests.valkey_servers import group
from tests.waiting import wait_until


@pytest.fixture
def env(servers: TestServers, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The page's ``farm.env``: a pooler by transaction, three Sentinels, S3 with a certificate of one's own."""
    servers.postgres.create_database("first_hour")
    direct = servers.postgres.url("first_hour")
    ours = Authority(tmp_path)
    plain = urlsplit(servers.s3_endpoint_url).port
    assert plain is not None
    with ExitStack() as stack:
        pooled = stack.enter_context(pgbouncer(direct, tmp_path / "pgbouncer", "transaction", size=20))
        sentinels = stack.enter_context(group(tmp_path / "redis"))
        s3 = stack.enter_context(terminate(plain, ours.issue("127.0.0.1")))
        yield {
            **{name: value for name, value in os.environ.items() if not name.startswith("FARM_")},
            "FARM_DATABASE_URL": pooled,
            "FARM_DATABASE_DIRECT_URL": direct,
            "FARM_REDIS_URL": sentinels.url,
            "FARM_S3_ENDPOINT_URL": f"https://127.0.0.1:{s3}",
            "FARM_S3_ACCESS_KEY": servers.s3_access_key,
            "FARM_S3_SECRET_KEY": servers.s3_secret_key,
            "FARM_S3_BUCKET": "first-hour",
            "FARM_SECRET_KEY": "a key of the tests which protects nothing",
            "FARM_CA_FILE": str(ours.ca_file),
            "FARM_DATA_DIR": str(tmp_path / "data"),
            "FARM_API_PORT": str(programs.free_port()),
            "FARM_TORCH_THREADS": "1",
            **{f"FARM_METRICS_{name}_PORT": "0" for name in ("API", "DISPATCHER", "DELIVERER", "WORKER")},
        }
    servers.postgres.drop_database("first_hour")


def farm(env: dict[str, str], *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "farm.cli", *arguments], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.timeout(400)
def test_an_operator_brings_a_farm_onto_servers_of_their_own(env: dict[str, str], tmp_path: Path) -> None:
    def checks(code: int) -> dict[str, dict[str, str]]:
        found = json.loads(farm(env, "doctor", "--json", code=code))["checks"]
        return {check["name"]: check for check in found}

    before = checks(1)
    assert {name for name, check in before.items() if check["status"] == "bad"} == {"migrations", "storage"}
    assert before["migrations"]["found"] == f"at nothing, this release needs {head()}"
    assert "there is no bucket 'first-hour'; create it with `farm init`" in before["storage"]["found"]

    role = f"postgresql://first_hour_worker:pw@127.0.0.1:{urlsplit(env['FARM_DATABASE_DIRECT_URL']).port}/first_hour"
    env = {**env, "FARM_JOIN_DATABASE_URL": role}
    key_file = tmp_path / "first-key"
    farm(env, "init", "--key-file", str(key_file))
    after = checks(0)
    assert {after[name]["status"] for name in ("database", "migrations", "clock", "redis", "storage")} == {"ok"}

    services: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for service in ("api", "dispatcher", "deliverer", "worker"):
            with (tmp_path / f"{service}.log").open("wb") as log:
                services[service] = subprocess.Popen(
                    [sys.executable, "-m", "farm.cli", service], env=env, stdout=log, stderr=log
                )
        client = {**env, "FARM_URL": f"http://127.0.0.1:{env['FARM_API_PORT']}", "FARM_API_KEY": key_file.read_text()}

        def online() -> bool:
            for name, one in services.items():
                assert one.poll() is None, f"{name}: {(tmp_path / f'{name}.log').read_text()[-2000:]}"
            done = subprocess.run(
                [sys.executable, "-m", "farm.cli", "workers", "--json"], env=client, capture_output=True, text=True
            )
            return done.returncode == 0 and '"online"' in done.stdout

        wait_until(online, 180, every=1, what="the worker is online")
        farm(client, "render", "a red ball on a blue background", "--steps", "4", "-o", str(tmp_path / "ball.png"))
        assert (tmp_path / "ball.png").read_bytes().startswith(b"\x89PNG")

        token = farm(client, "workers", "tokens", "create", "rack 3", "--hours", "8").strip()
        assert token.startswith("join_")
        (listed,) = json.loads(farm(client, "workers", "tokens", "--json"))
        assert "rack 3" in farm(client, "workers", "tokens")
        assert "revoked" in farm(client, "workers", "tokens", "revoke", listed["id"])
        refused = subprocess.run(
            [sys.executable, "-m", "farm.cli", "worker", "--join", client["FARM_URL"], "--token", token],
            env=env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert refused.returncode == 2
        assert "the join token was revoked" in refused.stderr
    finally:
        for one in services.values():
            one.terminate()
        for one in services.values():
            one.wait(60)
        with psycopg.connect(env["FARM_DATABASE_DIRECT_URL"], autocommit=True) as connection:
            connection.execute("DROP OWNED BY first_hour_worker")
            connection.execute("DROP ROLE first_hour_worker")
