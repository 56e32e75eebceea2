"""The studio as a designer uses it: in Chromium, over a real server, with a worker's hand that renders."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from playwright.sync_api import FilePayload, Page, expect

from farm.domain.job import Job
from tests.browser.conftest import Enter, LivedIn
from tests.browser.seed_data import Furnished
from tests.waiting import wait_until

#: Notes the longest time between two frames.
SLOWEST = """
window.slow = 0;
let last = performance.now();
(function tick() {
  const now = performance.now();
  window.slow = Math.max(window.slow, now - last);
  last = now;
  requestAnimationFrame(tick);
})()
"""
AXE = Path(__file__).with_name("vendor") / "axe.min.js"
PROMPT = "a red ball on a blue background"


def opened(enter: Enter, key: str, **options: object) -> Page:
    page = enter(key, **options)
    page.goto("/farm/studio")
    expect(page.locator("[name=prompt]")).to_be_visible()
    return page


def submitted(page: Page, keys: str = "Control+Enter") -> str:
    """Submit by keys; the id of the job."""
    with page.expect_response(lambda one: one.url.endswith("/studio/jobs") and one.request.method == "POST") as sent:
        page.keyboard.press(keys)
    assert sent.value.status == 201, sent.value.text()
    return str(sent.value.json()["id"])


def rendered(page: Page, farm: Furnished, keys: str = "Control+Enter") -> Job:
    job = farm.worker.begin(submitted(page, keys))
    farm.worker.succeed(job)
    expect(page.locator("#result .made img").first).to_be_visible()
    return job


def test_a_prompt_becomes_an_image_in_place_by_keys_alone(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = opened(enter, farm.operator)
    page.keyboard.press("/")
    page.keyboard.type(PROMPT)
    page.locator("input[name=num_inference_steps]").fill("9")
    page.locator("[name=seed]").fill("77")
    job_id = submitted(page)
    result = page.locator("#result")
    expect(result).to_contain_text("Waiting")
    expect(result).to_contain_text(re.compile("[Pp]lace [0-9]+|[Bb]ehind"))
    job = farm.worker.begin(job_id, 4)
    assert (job.spec.prompt, job.spec.num_inference_steps, job.spec.seed) == (PROMPT, 9, 77)
    assert job.spec.preview
    expect(result).to_contain_text("Step 4 of 9")
    farm.worker.succeed(job)
    image = page.locator("#result .made img")
    expect(image).to_be_visible()
    wait_until(lambda: image.evaluate("one => one.naturalWidth") == 128, what="the image is shown")
    expect(page.locator("#history img")).to_have_count(1)
    expect(page.locator("#told")).to_have_text("Rendered: 1 output.")
    assert api.job(job_id).tenant_id == api.tenant_id


def test_nothing_is_lost_by_a_reload_back_another_model_or_a_new_sign_in(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = opened(enter, farm.operator)
    page.fill("[name=prompt]", PROMPT)
    page.locator("input[name=guidance_scale]").fill("6.5")
    rendered(page, farm)
    page.fill("[name=negative_prompt]", "blue")

    def whole() -> None:
        expect(page.locator("[name=prompt]")).to_have_value(PROMPT)
        expect(page.locator("input[name=guidance_scale]")).to_have_value("6.5")
        expect(page.locator("[name=negative_prompt]")).to_have_value("blue")
        expect(page.locator("#history img")).to_have_count(1)
        expect(page.locator("#result .made img")).to_be_visible()

    page.reload()
    whole()
    page.goto("/farm/jobs")
    page.go_back()
    whole()
    page.select_option("[name=task]", "image-to-image")
    expect(page.locator("[data-role=image]")).to_be_visible()
    page.select_option("[name=task]", "text-to-image")
    whole()
    # the session ends while somebody writes
    with api.store.begin() as unit:
        for cookie in page.context.cookies():
            unit.sessions.end(cookie["value"])
    page.keyboard.press("Control+Enter")
    page.get_by_role("link", name="Sign in again").click()
    page.fill("#api_key", farm.operator)
    page.click("text=Sign in")
    expect(page).to_have_url(re.compile("/farm/studio$"))
    whole()
    other = opened(enter, farm.tenant)  # another key at another browser
    expect(other.locator("[name=prompt]")).to_have_value("")


def test_a_mistake_is_named_beside_its_field_and_keeps_the_rest(lived_in: LivedIn, enter: Enter) -> None:
    _, farm = lived_in
    page = opened(enter, farm.operator)
    page.fill("[name=prompt]", PROMPT)
    page.locator("input[name=num_inference_steps]").fill("100000")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert").filter(has_text="field to correct")).to_be_visible()
    field = page.locator("[data-field=num_inference_steps]")
    expect(field).to_have_class(re.compile("wrong"))
    expect(field.locator("input[name]")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("[name=prompt]")).to_have_value(PROMPT)
    page.locator("input[name=num_inference_steps]").fill("5")
    assert submitted(page)
    expect(page.locator(".field.wrong")).to_have_count(0)


def test_four_variations_are_compared_and_give_back_their_seed(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = opened(enter, farm.operator)
    page.fill("[name=prompt]", PROMPT)
    page.locator("[name=seed]").fill("40")
    page.get_by_label("Shape").select_option("1:1")
    job_id = submitted(page, "Control+Shift+Enter")
    assert api.job(job_id).spec.num_outputs == 4
    farm.worker.succeed(farm.worker.begin(job_id))
    page.get_by_role("button", name="Compare…").first.click()
    expect(page.get_by_role("button", name="Marked to compare")).to_be_visible()
    page.locator("[name=seed]").fill("41")
    rendered(page, farm)
    page.get_by_role("button", name="Compare with the marked one").click()
    slider = page.get_by_label("Where the one ends")
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator(".compare .over")).to_have_css("clip-path", "inset(0px 0px 0px 0%)")
    page.keyboard.press("End")
    expect(page.locator(".compare .over")).to_have_css("clip-path", "inset(0px 0px 0px 100%)")
    page.keyboard.press("Escape")
    page.locator("#history button").last.click()
    page.locator("[name=seed]").fill("")
    page.get_by_role("button", name="Use seed").click()
    expect(page.locator("[name=seed]")).to_have_value("40")


def test_a_recipe_is_loaded_from_an_image_of_another_program(lived_in: LivedIn, enter: Enter) -> None:
    _, farm = lived_in
    page = opened(enter, farm.operator)
    text = PngImagePlugin.PngInfo()
    text.add_text(
        "parameters",
        "a cat\nNegative prompt: dogs\nSteps: 13, Sampler: Euler a, CFG scale: 3.5, Seed: 99, Size: 64x128",
    )
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=text)
    file: FilePayload = {"name": "cat.png", "mimeType": "image/png", "buffer": out.getvalue()}
    page.set_input_files("#load", file)
    expect(page.locator("[name=prompt]")).to_have_value("a cat")
    for name, value in {
        "negative_prompt": "dogs", "num_inference_steps": "13", "guidance_scale": "3.5", "seed": "99", "width": "64",
        "height": "128", "scheduler": "euler-ancestral",
    }.items():  # fmt: skip
        expect(page.locator(f"[name={name}]")).to_have_value(value)
    page.get_by_label("Swap width and height").click()
    expect(page.locator("[name=width]")).to_have_value("128")
    plain = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "PNG")
    page.set_input_files("#load", {"name": "cat.png", "mimeType": "image/png", "buffer": plain.getvalue()})
    expect(page.get_by_role("alert").filter(has_text="carries no recipe")).to_be_visible()
    expect(page.locator("[name=prompt]")).to_have_value("a cat")


def test_an_output_is_inpainted_under_a_painted_mask(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = opened(enter, farm.operator)
    page.fill("[name=prompt]", PROMPT)
    rendered(page, farm)
    page.get_by_role("button", name="Inpaint this").click()
    canvas = page.locator("canvas.masking")
    expect(canvas).to_be_focused()
    for key in ("Shift+ArrowUp", "Space", "Shift+ArrowDown", "Shift+ArrowDown", "Space", "e", "Space", "Control+z"):
        page.keyboard.press(key)
    expect(page.locator("dialog.masker [role=status]")).to_have_text("2 steps")
    frame = canvas.bounding_box()
    assert frame is not None
    page.keyboard.press("e")  # the brush again
    page.mouse.move(frame["x"] + frame["width"] * 0.1, frame["y"] + frame["height"] * 0.9)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] * 0.3, frame["y"] + frame["height"] * 0.9, steps=4)
    page.mouse.up()
    page.keyboard.press("i")
    page.get_by_role("button", name="Use the mask").click()
    expect(page.locator("[data-role=mask_image] img")).to_be_visible()
    page.locator("[name=prompt]").focus()
    spec = api.job(submitted(page)).spec
    assert spec.task == "inpainting"
    mask = Image.open(io.BytesIO(api.storage.get(spec.inputs["mask_image"][0].key))).convert("L")
    assert mask.size == (128, 128)
    points = {(64, 51): 0, (64, 77): 0, (26, 115): 0, (100, 20): 255, (64, 64 + 40): 255}
    assert {at: mask.getpixel(at) for at in points} == points
    page.reload()  # the files are kept, too
    expect(page.locator("[data-role=image] img")).to_be_visible()
    expect(page.locator("[data-role=mask_image] img")).to_be_visible()


def test_a_photograph_of_twelve_megapixels_is_painted_without_delay(lived_in: LivedIn, enter: Enter) -> None:
    _, farm = lived_in
    page = opened(enter, farm.operator)
    page.select_option("[name=task]", "inpainting")
    out = io.BytesIO()
    Image.new("RGB", (4000, 3000), "teal").save(out, "JPEG")
    page.set_input_files("#file-image", {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": out.getvalue()})
    page.get_by_role("button", name="Paint the mask").click()
    canvas = page.locator("canvas.masking")
    expect(canvas).to_be_focused()
    frame = canvas.bounding_box()
    assert frame is not None
    page.evaluate(SLOWEST)
    page.mouse.move(frame["x"] + 20, frame["y"] + 20)
    page.mouse.down()
    for step in range(30):
        page.mouse.move(frame["x"] + 20 + step * 10, frame["y"] + 20 + step * 5)
    page.mouse.up()
    assert page.evaluate("window.slow") < 1_000
    page.get_by_role("button", name="Use the mask").click()
    expect(page.locator("[data-role=mask_image] img")).to_be_visible()


@pytest.mark.parametrize("width", [390, 1440])
def test_the_studio_is_accessible_and_fits(lived_in: LivedIn, enter: Enter, width: int) -> None:
    _, farm = lived_in
    page = enter(farm.operator, viewport={"width": width, "height": 844}, bypass_csp=True)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(f"/farm/studio?job={farm.succeeded}")
        expect(page.locator("#result .made img")).to_be_visible()
        page.get_by_text("More", exact=True).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.add_script_tag(path=str(AXE))
        violations = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        assert not violations, json.dumps([(one["id"], one["nodes"][0]["html"][:200]) for one in violations], indent=1)
        page.get_by_role("button", name="Inpaint this").click()
        expect(page.locator("canvas.masking")).to_be_focused()
        violations = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        assert not violations, json.dumps([(one["id"], one["nodes"][0]["html"][:200]) for one in violations], indent=1)


def test_who_may_not_submit_has_no_studio(lived_in: LivedIn, enter: Enter) -> None:
    _, farm = lived_in
    page = enter(farm.reader)
    expect(page.get_by_role("link", name="Studio")).to_have_count(0)
    answer = page.goto("/farm/studio")
    assert answer is not None
    assert answer.status == 403
    theirs = enter(farm.tenant)
    found = theirs.request.get(f"/farm/studio/jobs?job={farm.succeeded}", headers={"HX-Request": "true"})
    assert found.json() == {"jobs": []}
    copied = theirs.request.post(
        "/farm/studio/files", multipart={"output": f"{farm.succeeded}/0"}, headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert copied.status == 404
