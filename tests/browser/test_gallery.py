"""The gallery as a designer uses it: find, star, tag, collect, take home, delete; by pointer and by keys."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Enter, LivedIn
from tests.waiting import wait_until

AXE = Path(__file__).with_name("vendor") / "axe.min.js"
WALL = "#wall .shot"


def found(page: Page) -> int:
    return page.locator(WALL).count()


def test_outputs_come_as_the_reader_scrolls_in_their_own_shape(
    lived_in: LivedIn, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.dashboard.pages.gallery.PAGE", 8)
    _, farm = lived_in
    page = enter(farm.operator)
    page.goto("/farm/gallery")
    page.mouse.wheel(0, 30_000)
    wait_until(lambda: page.locator("[data-more]").count() == 0, what="all outputs are there")
    places = [box.get_attribute("value") for box in page.locator("input[name=place]").all()]
    assert len(places) == len(set(places)) > 20
    image = page.locator(f"{WALL} img").first
    wait_until(lambda: image.evaluate("one => one.naturalWidth") > 0, what="the image is shown")
    ratio = image.evaluate("one => one.width / one.height - one.naturalWidth / one.naturalHeight")
    assert abs(ratio) < 0.02
    without = enter(farm.operator, java_script_enabled=False)
    without.goto("/farm/gallery")
    assert found(without) == 8
    without.get_by_role("link", name="Older outputs").click()
    assert found(without) == 8
    assert without.locator("input[name=place]").first.get_attribute("value") == places[8]


def test_a_designer_keeps_some_and_takes_them_home(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.operator)
    page.goto("/farm/gallery")
    everything = found(page)
    page.fill("[name=q]", "cone")
    page.get_by_role("button", name="Find").click()
    expect(page).to_have_url(re.compile("q=cone"))
    some = found(page)
    assert 0 < some < everything
    # by keys: star the first, tick the second
    page.locator(f"{WALL} a.thumb").first.focus()
    page.keyboard.press("s")
    expect(page.locator(f"{WALL} .star").first).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("x")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    expect(page.get_by_text("2 ticked:")).to_be_visible()
    page.fill("#collection-name", "Autumn picks")
    page.get_by_role("button", name="Collect", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("2 outputs with the collection Autumn picks.")
    expect(page).to_have_url(re.compile("q=cone"))  # the search stays
    page.goto("/farm/gallery?star=1")
    assert found(page) == 1
    page.goto("/farm/gallery?collection=Autumn+picks")
    assert found(page) == 2
    page.get_by_label("all on this page").check()
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download zip").click()
    with zipfile.ZipFile(io.BytesIO(Path(downloading.value.path()).read_bytes())) as archive:
        assert len(archive.namelist()) == 2
        assert archive.testzip() is None
    first = page.locator("input[name=place]").first.get_attribute("value") or ""
    page.get_by_role("button", name="Another seed").click()
    expect(page.get_by_role("status")).to_have_text("2 jobs submitted with another seed.")
    page.goto("/farm/gallery?collection=Autumn+picks")
    page.locator("input[name=place]").first.check()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Delete 1 output?")).to_be_visible()
    page.get_by_role("button", name="Delete 1 output").click()
    expect(page.get_by_role("status")).to_have_text("1 output deleted.")
    assert found(page) == 1
    assert api.job(first.partition("/")[0]).outputs == ()


def test_who_may_only_read_sees_no_button_that_changes(lived_in: LivedIn, enter: Enter) -> None:
    _, farm = lived_in
    page = enter(farm.reader)
    page.goto("/farm/gallery")
    assert found(page) > 0
    expect(page.get_by_role("button", name="Download zip")).to_be_visible()
    expect(page.get_by_role("button", name="Delete")).to_have_count(0)
    expect(page.locator("[data-star]")).to_have_count(0)
    place = page.locator("input[name=place]").first.get_attribute("value") or ""
    refused = page.request.post(
        "/farm/gallery/act", form={"action": "star", "place": place}, headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert refused.status == 403


@pytest.mark.parametrize("width", [390, 1440])
def test_the_gallery_is_accessible_and_fits(lived_in: LivedIn, enter: Enter, width: int) -> None:
    _, farm = lived_in
    page = enter(farm.operator, viewport={"width": width, "height": 844}, bypass_csp=True)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto("/farm/gallery?created_after=2020-01-01")
        page.locator("input[name=place]").first.check()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.add_script_tag(path=str(AXE))
        violations = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        assert not violations, json.dumps([(one["id"], one["nodes"][0]["html"][:200]) for one in violations], indent=1)
