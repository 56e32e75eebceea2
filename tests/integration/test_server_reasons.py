"""What S3 says, and what ``farm doctor`` says of servers that the environment names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from farm.errors import StorageUnavailable
from farm.objects.storage import Storage
from farm.settings import Settings
from tests.conftest import TestServers


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"s3_secret_key": SecretStr("other")}, "SignatureDoesNotMatch.*check FARM_S3_SECRET_KEY"),
        ({"s3_access_key": "other"}, "InvalidAccessKeyId.*check FARM_S3_ACCESS_KEY"),
        ({"s3_bucket": "no-such-bucket"}, "there is no bucket 'no-such-bucket'; create it with `farm init`"),
        ({"s3_endpoint_url": "http://127.0.0.1:1"}, "nothing listens there"),
        ({"s3_endpoint_url": "http://no-such-host.invalid"}, "check the host name"),
    ],
)
def test_what_s3_says_is_said_with_what_to_check(
    servers: TestServers, farm_env: dict[str, str], change: dict[str, Any], reason: str
) -> None:
    storage = Storage(Settings().model_copy(update=change))
    with pytest.raises(StorageUnavailable, match=reason) as raised:
        storage.check()
    storage.close()
    text = str(raised.value)
    assert text.startswith("S3 at http://")
    assert "\n" not in text
    assert servers.s3_secret_key not in text


def doctor(tmp_path: Path, env: dict[str, str]) -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-m", "farm.cli", "doctor", "--json", "--data-dir", str(tmp_path / "farm")],
        env={**os.environ, **env}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_doctor_asks_the_servers_that_the_environment_names(tmp_path: Path, farm_env: dict[str, str]) -> None:
    found = doctor(tmp_path, farm_env)
    assert {found[name]["status"] for name in ("database", "migrations", "clock", "redis", "storage")} == {"ok"}


def test_doctor_says_what_each_of_them_refuses(tmp_path: Path, farm_env: dict[str, str]) -> None:
    wrong = {
        "FARM_DATABASE_URL": farm_env["FARM_DATABASE_URL"].replace("farm:", "farm:x"),
        "FARM_REDIS_URL": "redis://127.0.0.1:1/0",
        "FARM_S3_SECRET_KEY": "other",
    }
    found = doctor(tmp_path, {**farm_env, **wrong})
    for name, reason in {
        "database": "password authentication failed",
        "redis": "nothing listens there",
        "storage": "SignatureDoesNotMatch",
    }.items():
        assert found[name]["status"] == "bad"
        assert reason in found[name]["found"]
    found = doctor(tmp_path, {**farm_env, "FARM_DATABASE_URL": "mysql://h/d"})
    assert "must be a URL that begins with postgresql://" in found["database"]["found"]
