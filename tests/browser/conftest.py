"""Real Chromium over a real server: found on this machine, installed where that is allowed, demanded on CI."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from farm.settings import Settings
from tests.api_server import Api, running
from tests.browser.seed_data import Furnished, furnish
from tests.conftest import TestServers

expect.set_options(timeout=20_000)  # for machines that do other things, too

LivedIn = tuple[Api, Furnished]
Enter = Callable[..., Page]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The path of an installed browser; as root on Debian, one is installed if there is none."""
    with (Path(tempfile.gettempdir()) / "render-farm-tests-chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes of tests that run beside each other install it once
        given = os.environ.get("CHROMIUM")
        found = given or next((path for name in NAMES if (path := shutil.which(name))), None)
        if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
            for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
                subprocess.run(["apt-get", *command], capture_output=True, timeout=300, check=False)
            found = shutil.which("chromium")
        return found


# Not for the session: while it is open, Playwright's event loop counts as this thread's, and tests of other folders
# that run in the same process could not start one of their own.
@pytest.fixture(scope="module")
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
        settings = Settings(flower_url="http://127.0.0.1:5555")
    with running(settings) as api:
        yield api, furnish(api)
    servers.postgres.drop_database(name)


@pytest.fixture
def contexts(browser: Browser, lived_in: LivedIn) -> Iterator[list[BrowserContext]]:
    opened: list[BrowserContext] = []
    yield opened
    for one in opened:
        one.close()


@pytest.fixture
def enter(browser: Browser, lived_in: LivedIn, contexts: list[BrowserContext]) -> Enter:
    """Sign in with a key; what the page complains of in its console fails the test at its next step."""

    def entered(key: str, **options: Any) -> Page:
        context = browser.new_context(base_url=lived_in[0].url, **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: pytest.fail(f"a script failed: {error}"))
        page.on("console", lambda said: pytest.fail(said.text) if "Content Security Policy" in said.text else None)
        page.goto("/farm/login")
        page.fill("#api_key", key)
        page.click("text=Sign in")
        expect(page).to_have_url(re.compile("/farm$"))
        return page

    return entered
