"""Pages that say when they are old, and go on by themselves; pauses and reasons where their jobs are shown."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Enter, LivedIn
from tests.conftest import TestServers
from tests.queues import candidates
from tests.waiting import wait_until


@pytest.fixture
def process(lived_in: LivedIn, servers: TestServers) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Another API process over the same database, which a test may stop."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    environment = os.environ | servers.env(database_url=servers.postgres.url("browser"))
    command = [sys.executable, "-m", "farm.cli", "api", "--host", "127.0.0.1", "--port", str(port)]
    started = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx2.get(f"{url}/healthz", trust_env=False, timeout=2).status_code < 500
        except httpx2.HTTPError:
            assert started.poll() is None
            return False

    try:
        wait_until(answers, 60, what="the API starts")
        yield started, url
    finally:
        started.send_signal(signal.SIGCONT)
        started.terminate()
        started.wait(30)


def sign_in(page: Page, url: str, key: str) -> None:
    page.goto(f"{url}/farm/login")
    page.fill("#api_key", key)
    page.click("text=Sign in")
    expect(page).to_have_url(re.compile("/farm$"))


def test_a_page_says_that_the_farm_does_not_answer_and_goes_on_by_itself(
    lived_in: LivedIn, enter: Enter, process: tuple[subprocess.Popen[bytes], str]
) -> None:
    api, farm = lived_in
    started, url = process
    page = enter(farm.operator)
    sign_in(page, url, farm.operator)
    with api.store.begin() as unit:
        job_id = candidates(unit, 1)[-1].job_id
    page.goto(f"{url}/farm/jobs/{job_id}")
    stamp = page.locator("[data-stamp]")
    expect(stamp).to_have_text(re.compile(r"updated \d+ s ago"))
    bar = page.get_by_role("alert")
    expect(bar).to_have_count(0)
    started.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    expect(bar).to_contain_text(re.compile(r"No answer since \d\d:\d\d"), timeout=5_000)
    assert time.monotonic() - began <= 5
    started.send_signal(signal.SIGCONT)
    expect(bar).to_have_count(0)
    farm.worker.begin(job_id, 7)  # and the stream is there again
    expect(page.get_by_text("Step 7 of 20")).to_be_visible()


def test_a_pause_stands_on_every_page_and_leaves_it_when_it_ends(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page, theirs = enter(farm.operator), enter(farm.tenant)
    page.goto(f"/farm/jobs/{farm.queued}")
    theirs.goto("/farm/jobs")
    with api.store.begin() as unit:
        unit.pauses.pause(by="night shift")
    try:
        sentence = re.compile("The farm is paused by the key 'night shift' since")
        expect(page.locator("#notices")).to_contain_text(sentence)
        expect(theirs.locator("#notices")).to_contain_text(sentence)
        expect(page.locator("#live")).to_contain_text("the farm is paused by the key 'night shift'")
        page.goto("/farm/queues")
        expect(page.locator("td.why", has_text="paused by the key").first).to_be_visible()
        page.goto("/farm/jobs?state=queued")
        expect(page.locator(".why", has_text="paused by the key").first).to_be_visible()
    finally:
        with api.store.begin() as unit:
            unit.pauses.resume()
    expect(page.locator("#notices")).not_to_contain_text("paused")
    expect(theirs.locator("#notices")).not_to_contain_text("paused")


def test_times_are_local_with_utc_beside_them(lived_in: LivedIn, enter: Enter) -> None:
    _, farm = lived_in
    page = enter(farm.operator, timezone_id="Asia/Kolkata")
    page.goto(f"/farm/jobs/{farm.succeeded}")
    submitted = page.locator(".timeline time").first
    expect(submitted).to_have_attribute("title", re.compile("UTC$"))
    local, utc = submitted.inner_text(), submitted.get_attribute("title") or ""
    minutes = [60 * int(one[11:13]) + int(one[14:16]) for one in (local, utc)]
    assert (minutes[0] - minutes[1]) % 1440 == 330


def test_an_address_without_a_page_is_answered_with_a_page(lived_in: LivedIn, enter: Enter) -> None:
    _, farm = lived_in
    page = enter(farm.operator)
    answer = page.goto("/farm/nothing/here")
    assert answer is not None
    assert answer.status == 404
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()


def test_signing_in_leads_to_the_address_with_its_filter(lived_in: LivedIn, enter: Enter) -> None:
    _, farm = lived_in
    page = enter(farm.operator)
    page.get_by_role("button", name="Sign out").click()
    page.goto("/farm/jobs?state=failed&error_code=out_of_memory")
    page.fill("#api_key", farm.operator)
    page.click("text=Sign in")
    expect(page).to_have_url(re.compile(r"/farm/jobs\?state=failed&error_code=out_of_memory$"))


def test_back_closes_the_lightbox_and_stays_on_the_page(lived_in: LivedIn, enter: Enter) -> None:
    _, farm = lived_in
    page = enter(farm.operator)
    page.goto(f"/farm/batches/{farm.batch}")
    page.locator("a[data-lightbox]").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("dialog")).not_to_be_visible()
    expect(page).to_have_url(re.compile(f"/farm/batches/{farm.batch}$"))
    page.locator("a[data-lightbox]").first.click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).not_to_be_visible()
    page.go_back()
    expect(page).to_have_url(re.compile("/farm$"))
