"""Queues, webhooks, keys and tenants as a person meets them, over the same farm as the other pages."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from farm.domain.endpoint import DeliveryState
from farm.errors import Unauthorized
from farm.store.deliveries import DeliveryFilter
from farm.store.tenants import Scope
from tests.browser.conftest import Enter, LivedIn
from tests.browser.seed_data import Furnished


def test_queues_show_each_line_with_what_waits(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    with api.store.begin() as unit:
        waiting = sum(one.waiting for one in unit.dashboard_queries.queues())
        assert waiting == unit.dashboard_queries.queue_totals().jobs > 20
    page = enter(farm.operator, java_script_enabled=False)
    expect(page.get_by_role("link", name="Flower")).to_have_attribute("href", "http://127.0.0.1:5555")
    page.get_by_role("link", name="Queues").click()
    bulk = page.locator("tbody tr", has_text="bulk")
    expect(bulk).to_contain_text("tests")
    shown = [int(cell.replace(",", "")) for cell in page.locator("tbody td:nth-child(4)").all_inner_texts()]
    assert sum(shown) == waiting
    own = enter(farm.tenant)
    own.goto("/farm/queues")
    with api.store.begin() as unit:
        theirs = unit.dashboard_queries.queues(farm.other_id)
    assert theirs
    assert own.locator("tbody th").all_inner_texts() == [one.priority.value for one in theirs]


def test_a_key_is_shown_once_lives_beside_its_successor_and_ends_at_once(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.operator)
    page.get_by_role("link", name="API keys").click()
    page.fill("[name=name]", "nightly import")
    page.get_by_label("operate").check()
    page.get_by_role("button", name="Make the key").click()
    first = page.locator("pre.secret").inner_text()
    with api.store.begin() as unit:
        key = unit.tenants.authenticate(first)
    assert (key.name, set(key.scopes)) == ("nightly import", {Scope.SUBMIT, Scope.READ, Scope.OPERATE})
    page.get_by_role("link", name="Done").click()
    assert first not in page.content()
    row = page.locator("tbody tr", has_text=key.id[-8:])
    row.get_by_role("button", name="Rotate").click()
    second = page.locator("pre.secret").inner_text()
    with api.store.begin() as unit:
        assert unit.tenants.authenticate(first).name == unit.tenants.authenticate(second).name
    page.get_by_role("link", name="Done").click()
    page.locator("tbody tr", has_text=key.id[-8:]).get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("status")).to_contain_text("is revoked")
    with api.store.begin() as unit:
        unit.tenants.authenticate(second)
        try:
            unit.tenants.authenticate(first)
        except Unauthorized:
            return
    raise AssertionError("the revoked key still opens")


def test_an_endpoint_is_added_and_what_was_given_up_is_sent_again(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.operator, java_script_enabled=False)
    page.get_by_role("link", name="Webhooks").click()
    expect(page.locator("tbody tr", has_text="mail.example")).to_contain_text("failing")
    expect(page.locator("tbody tr", has_text="old.example")).to_contain_text("disabled")

    page.fill("[name=url]", "http://127.0.0.1/inside")
    page.get_by_role("button", name="Add the endpoint").click()
    expect(page.get_by_text("Unprocessable content")).to_be_visible()

    page.goto(f"/farm/webhooks/{farm.endpoint}")
    expect(page.get_by_text("5 given up after their last attempt")).to_be_visible()
    page.get_by_role("link", name="job.").first.click()
    expect(page.get_by_text("upstream is away for maintenance")).to_be_visible()
    page.get_by_role("button", name="Send it again").click()
    expect(page.get_by_role("status")).to_contain_text("sent again")
    page.goto(f"/farm/webhooks/{farm.endpoint}?state=dead")
    expect(page.locator("tbody tr")).to_have_count(4)
    page.get_by_role("button", name="Send them again").click()
    expect(page.get_by_role("status")).to_have_text("4 deliveries will be sent again.")
    with api.store.begin() as unit:
        dead = DeliveryFilter(endpoint_id=farm.endpoint, state=DeliveryState.DEAD)
        assert unit.deliveries.page(api.tenant_id, dead, None, 10)[0] == []

    page.get_by_role("button", name="Rotate the secret").click()
    secret = page.locator("pre.secret").inner_text()
    with api.store.begin() as unit:
        signing = unit.webhooks.endpoint(api.tenant_id, farm.endpoint).secrets
    assert signing[0] == secret
    assert len(signing) == 2
    page.get_by_role("link", name="Done").click()
    page.get_by_role("button", name="Disable").click()
    expect(page.locator(".banner")).to_contain_text("disabled by a request")


def test_limits_are_changed_and_a_mistake_is_named_beside_its_field(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.operator)
    page.get_by_role("link", name="Tenants and usage").click()
    page.get_by_role("link", name="games").click()
    page.fill("[name=weight]", "-1")
    page.fill("[name=max_queued]", "5,000")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("[name=weight]")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("[name=max_queued]")).to_have_value("5,000")
    with api.store.begin() as unit:
        assert unit.tenants.existing(farm.other_id).max_queued is None
    page.fill("[name=weight]", "2.5")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("Saved")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("the others wait")
    with api.store.begin() as unit:
        found = unit.tenants.existing(farm.other_id)
    assert (found.weight, found.max_queued, found.paused_at is None) == (2.5, 5_000, False)
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".uplot canvas")).to_be_visible()
    page.goto(f"/farm/tenants/{farm.first_id}")
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert download.value.path().read_text().startswith("day,tenant_id,tenant,model")


def test_a_tenants_key_reaches_its_own_settings_alone(lived_in: LivedIn, enter: Enter) -> None:
    _, farm = lived_in
    page = enter(farm.tenant)
    expect(page.get_by_role("link", name="API keys")).to_have_count(0)
    expect(page.get_by_role("link", name="Flower")).to_have_count(0)
    page.get_by_role("link", name="Tenants and usage").click()
    expect(page).to_have_url(re.compile(farm.other_id))
    expect(page.get_by_role("button", name="Save")).to_have_count(0)
    _refused(page, farm)
    reader = enter(farm.reader)
    reader.goto(f"/farm/webhooks/{farm.endpoint}")
    expect(reader.get_by_role("button", name="Delete")).to_have_count(0)
    same = {"Sec-Fetch-Site": "same-origin"}
    assert reader.request.post(f"/farm/webhooks/{farm.endpoint}/delete", headers=same).status == 403


def _refused(page: Page, farm: Furnished) -> None:
    same = {"Sec-Fetch-Site": "same-origin"}
    for path, status in {
        "/farm/keys": 403,
        f"/farm/keys?tenant={farm.other_id}": 403,
        f"/farm/tenants/{farm.first_id}": 403,
        f"/farm/tenants/{farm.first_id}/usage.csv": 403,
        f"/farm/tenants/{farm.first_id}/usage.json": 403,
        f"/farm/webhooks?tenant={farm.first_id}": 404,
        f"/farm/webhooks/{farm.endpoint}": 404,
        f"/farm/webhooks/deliveries/{farm.dead}": 404,
    }.items():
        assert page.request.get(path).status == status, path
    for path in (
        "/farm/keys",
        "/farm/tenants",
        f"/farm/tenants/{farm.other_id}",
        f"/farm/tenants/{farm.other_id}/pause",
        f"/farm/webhooks/{farm.endpoint}/rotate",
        f"/farm/webhooks/{farm.endpoint}/delete",
        f"/farm/webhooks/{farm.endpoint}/resend",
        f"/farm/webhooks/deliveries/{farm.dead}/resend",
    ):
        assert page.request.post(path, headers=same).status in (403, 404), path
