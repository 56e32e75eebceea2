"""Models that an administrator adds and removes on their page."""

from __future__ import annotations

from playwright.sync_api import expect

from farm.domain.model import ModelFacts, ModelState
from tests.browser.conftest import Enter, LivedIn


def test_a_model_is_added_checked_and_removed_on_its_page(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.operator)
    page.get_by_role("link", name="Models").click()
    page.get_by_text("Add a model").click()
    page.get_by_label("Id, which jobs name").fill("flux")
    page.get_by_label("A folder that every worker sees").fill("black-forest-labs/FLUX.1-dev")
    page.get_by_role("button", name="Add the model").click()
    expect(page.get_by_role("status")).to_contain_text("A worker checks it before jobs may name it")
    panel = page.locator("li.panel", has=page.get_by_role("heading", name="flux"))
    expect(panel).to_contain_text("checking")
    expect(panel).to_contain_text("waiting for a worker")
    with api.store.begin() as unit:
        assert unit.models.begin_check("flux", "render-01/cuda:0", {}, 60)
        report = {"message": "model flux cannot be downloaded", "worker": "render-01/cuda:0"}
        unit.models.end_check("flux", "render-01/cuda:0", ModelState.FAILED, ModelFacts(), report)
    page.reload()
    expect(panel).to_contain_text("model flux cannot be downloaded")
    panel.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("status")).to_contain_text("is removed")
    expect(panel).to_have_count(0)

    other = enter(farm.tenant)
    other.goto("/farm/models")
    expect(other.get_by_role("heading", name="starter")).to_be_visible()
    expect(other.get_by_text("Add a model")).to_have_count(0)
