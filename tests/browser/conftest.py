"""Real Chromium over a real server: found on this machine, installed where that is allowed, demanded on CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from farm.settings import Settings
from tests.api_server import Api, running
from tests.browser.furnishing import Furnished, furnish
from tests.conftest import TestServers

expect.set_options(timeout=20_000)  # for machines that do other things, too

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """A browser of this machine; where apt may install one, it does."""
    given = os.environ.get("CHROMIUM")
    found = given or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", *command], capture_output=True, timeout=300, check=False)
        found = shutil.which("chromium")
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    path = find_chromium()
    if path is None:
        told = "no Chromium is installed: `apt-get install chromium`, or name one in CHROMIUM"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(told)
        pytest.skip(told)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def lived_in(servers: TestServers, migrated_template: str) -> Iterator[tuple[Api, Furnished]]:
    """A server over a furnished farm, one for all of these tests."""
    name = "browser"
    servers.postgres.create_database(name, template=migrated_template)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in servers.env(database_url=servers.postgres.url(name)).items():
            patch.setenv(variable, value)
        settings = Settings()
    with running(settings) as api:
        yield api, furnish(api)
    servers.postgres.drop_database(name)
