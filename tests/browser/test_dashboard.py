"""The operations pages as a person meets them: in Chromium, over a real server and a farm with work in it."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from farm import lifecycle
from farm.dashboard.rendering import ASSETS
from farm.domain.checkpoint import Checkpoint
from farm.domain.job import HeldJob, NewJob
from farm.domain.queue import Assignment
from farm.domain.states import JobState, Priority
from farm.domain.worker import WorkerState
from farm.fields import MAX_STEPS
from farm.store.tenants import Scope
from tests import job_edges
from tests.browser.conftest import Enter, LivedIn
from tests.browser.screenshots import paths
from tests.browser.seed_data import scene
from tests.depth import NIGHTLY
from tests.integration.conftest import spec
from tests.queues import candidates
from tests.waiting import wait_until

AXE = Path(__file__).with_name("vendor") / "axe.min.js"


def status(page: Page, path: str) -> int:
    """Open a page; with which status it is answered."""
    answer = page.goto(path)
    assert answer is not None
    return answer.status


@pytest.mark.parametrize("folder", [ASSETS / "vendor", AXE.parent], ids=["shipped", "tests"])
def test_what_others_wrote_is_what_they_wrote(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    told = {name: digest for digest, name in (line.split() for line in lines)}
    found = {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in folder.iterdir()}
    del found["SHA256SUMS"]
    assert found == told
    assert any("LICENSE" in name for name in told)


def test_a_session_is_its_keys_and_ends_with_it(lived_in: LivedIn, enter: Enter) -> None:
    api, _ = lived_in
    with api.client(None) as client:
        assert client.get("/").headers["location"] == "/farm"
        refused = client.post("/farm/login", data={"api_key": "farm_wrong"}, headers={"Sec-Fetch-Site": "same-origin"})
        assert refused.status_code == 401
        assert "The API key is not known" in refused.text
        assert client.get("/farm/jobs").headers["location"] == "/farm/login?next=/farm/jobs"
    with api.store.begin() as unit:
        key, text = unit.tenants.create_key(api.tenant_id, "short-lived", frozenset({Scope.READ}))
    page = enter(text)
    (cookie,) = [one for one in page.context.cookies() if one["name"] == "farm_session"]
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"
    assert text not in cookie["value"]
    with api.client(None) as client:
        client.cookies.set("farm_session", cookie["value"])
        assert client.get("/farm/jobs").status_code == 200
        client.cookies.clear()
        client.cookies.set("farm_session", cookie["value"][:-1] + ("0" if cookie["value"][-1] != "0" else "1"))
        assert client.get("/farm/jobs").status_code == 303
    with api.store.begin() as unit:
        unit.tenants.revoke(api.tenant_id, key.id)
    page.goto("/farm/jobs")
    expect(page).to_have_url(re.compile("/farm/login"))
    blind = enter(api.new_key(Scope.SUBMIT))
    expect(blind.get_by_text("Missing scope")).to_be_visible()
    blind.click("text=Sign out")
    expect(blind).to_have_url(re.compile("/farm/login"))


def test_another_sites_form_changes_nothing(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    cookies = {one["name"]: one["value"] for one in enter(farm.operator).context.cookies()}
    elsewhere = [{}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site", "Origin": api.url}]
    with api.client(None) as client:
        client.cookies.set("farm_session", cookies["farm_session"])
        for headers in elsewhere:
            assert client.post("/farm/pause", headers=headers).status_code == 403, headers
        with api.store.begin() as unit:
            assert not unit.pauses.now().farm
        page = client.get("/farm")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text
    assert " style=" not in page.text


def test_a_tenant_sees_and_changes_its_own_alone(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.tenant)
    page.goto("/farm/jobs")
    expect(page.locator("tbody tr")).to_have_count(2)
    for path in (f"/farm/jobs/{farm.succeeded}", f"/farm/batches/{farm.batch}", f"/farm/images/{farm.succeeded}/0"):
        assert status(page, path) == 404, path
    page.goto("/farm/batches")
    expect(page.get_by_text("No batch yet")).to_be_visible()
    reader = enter(farm.reader)
    reader.goto(f"/farm/jobs/{farm.queued}")
    expect(reader.get_by_role("button", name="Cancel")).to_have_count(0)
    answer = reader.request.post(
        f"/farm/jobs/{farm.queued}/cancel", headers={"Sec-Fetch-Site": "same-origin"}, max_redirects=0
    )
    assert answer.status == 403
    assert reader.request.post("/farm/pause", headers={"Sec-Fetch-Site": "same-origin"}).status == 403
    assert api.job(farm.queued).state is JobState.QUEUED


#: Pages that together have every kind of element; the others are checked by `make nightly`.
TYPICAL = {"overview", "render", "studio", "gallery", "batch", "jobs", "job", "webhook", "tenant", "login"}


@pytest.mark.timeout(600)
def test_pages_are_accessible_and_fit_a_phone(lived_in: LivedIn, enter: Enter) -> None:
    """axe-core finds nothing serious, light or dark, and no page is wider than a phone."""
    _, farm = lived_in
    page = enter(farm.operator, viewport={"width": 390, "height": 844}, bypass_csp=True)
    pages = {**paths(farm), "missing": "/farm/jobs/none", "login": "/farm/login"}
    assert pages.keys() >= TYPICAL
    found = {}
    for name, path in pages.items():
        page.emulate_media(color_scheme="light")
        answer = page.goto(path)
        assert answer is not None
        assert answer.status == (404 if name == "missing" else 200), name
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        if not NIGHTLY and name not in TYPICAL:
            continue
        page.add_script_tag(path=str(AXE))
        reports = {"light": page.evaluate("axe.run({resultTypes: ['violations']})")}
        page.emulate_media(color_scheme="dark")  # which changes colours alone
        reports["dark"] = page.evaluate("axe.run({runOnly: ['color-contrast'], resultTypes: ['violations']})")
        for scheme, report in reports.items():
            serious = [one for one in report["violations"] if one["impact"] in ("serious", "critical")]
            if serious:
                elements = [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in serious]
                found[f"{name}, {scheme}"] = elements
    assert not found, json.dumps(found, indent=1)


def test_a_jobs_page_follows_it_to_its_image(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    with api.store.begin() as unit:
        job_id = candidates(unit, 1)[-1].job_id
    page = enter(farm.operator)
    page.goto(f"/farm/jobs/{job_id}")
    expect(page.locator(".state").first).to_have_text("queued")
    job = farm.worker.begin(job_id, 7)
    expect(page.get_by_text("Step 7 of 20")).to_be_visible()
    farm.worker.succeed(job)
    image = page.locator(".outputs img")
    expect(image).to_be_visible()
    wait_until(lambda: image.evaluate("one => one.naturalWidth") > 0, what="the image is shown")
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    page.get_by_text("Python", exact=True).click()
    expect(page.locator("#as-python")).to_contain_text("farm.run(")


def test_the_farm_and_its_workers_are_stopped_and_started(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.operator)
    page.get_by_role("button", name="Pause the farm").click()
    expect(page.get_by_text("no other job is dispatched")).to_be_visible()
    with api.store.begin() as unit:
        assert unit.pauses.now().farm
    page.get_by_role("button", name="Resume the farm").click()
    expect(page.get_by_text("The farm is resumed.")).to_be_visible()
    with api.store.begin() as unit:
        assert not unit.pauses.now().farm

    def state() -> WorkerState:
        with api.store.begin() as unit:
            return next(one.state for one in unit.workers.all() if one.info.name == farm.worker.name)

    for button, then in (("Drain", WorkerState.DRAINING), ("Resume", WorkerState.ONLINE)):
        page.goto(f"/farm/workers/one?name={farm.worker.name}")
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("status")).to_contain_text(farm.worker.name)
        assert state() is then
    page.goto("/farm")
    expect(page.locator(".uplot canvas")).to_be_visible()
    expect(page.locator("#latest img")).not_to_have_count(0)


def test_failures_are_tried_again_by_kind_without_javascript(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.operator, java_script_enabled=False)
    page.goto("/farm/batches")
    page.click("text=catalogue-autumn")
    group = page.locator(".failures li", has_text="out_of_memory")
    expect(group).to_contain_text("3")
    group.get_by_role("button").click()
    expect(page.get_by_text("3 jobs match")).to_be_visible()
    page.get_by_role("button", name="Retry 3 jobs").click()
    expect(page.get_by_role("status")).to_contain_text("3 jobs submitted again")
    page.locator("main").get_by_role("link", name="the list").click()
    made = [box.get_attribute("value") or "" for box in page.locator("tbody tr input").all()][:3]
    assert {api.job(one).state for one in made} == {JobState.QUEUED}
    assert farm.failed in {api.job(one).retry_of for one in made}
    page.goto(f"/farm/batches/{farm.batch}")
    group.get_by_role("button").click()  # what was retried is not retried twice
    expect(page.get_by_text("No job matches")).to_be_visible()


def test_all_that_match_are_canceled_however_many(
    lived_in: LivedIn, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.dashboard.pages.bulk_actions.MOST", 3)
    monkeypatch.setattr("farm.store.bulk_actions.CANCEL_CHUNK", 4)
    api, farm = lived_in
    spec = api.job(farm.queued).spec
    with api.store.begin() as unit:
        tenants = [api.tenant_id, unit.tenants.create("somebody else").id]
        made = [
            job_id for tenant in tenants for job_id in unit.jobs.insert(tenant, [NewJob(spec, custom_id="flood")] * 9)
        ]
    page = enter(farm.operator, java_script_enabled=False)
    page.goto("/farm/jobs?custom_id=flood")
    page.get_by_label("all that match").check()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("18 jobs match")).to_be_visible()
    page.get_by_role("button", name="Cancel 18 jobs").click()
    expect(page.get_by_role("status")).to_contain_text("18 jobs canceled")
    assert {api.job(one).state for one in made} == {JobState.CANCELED}
    assert api.job(farm.queued).state is JobState.QUEUED


def test_a_filter_and_its_pages_are_plain_links(
    lived_in: LivedIn, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from farm.dashboard.pages import jobs as jobs_page

    monkeypatch.setattr(jobs_page, "PAGE", 8)
    _, farm = lived_in
    page = enter(farm.operator, java_script_enabled=False)
    page.goto("/farm/jobs")
    page.get_by_label("succeeded").check()
    page.get_by_role("button", name="Filter").click()
    seen: list[str] = []
    while True:
        rows = page.locator("tbody tr")
        assert set(rows.locator(".state").all_inner_texts()) <= {"succeeded"}
        seen += [box.get_attribute("value") or "" for box in rows.locator("input").all()]
        if not page.get_by_text("Next page").count():
            break
        page.get_by_text("Next page").click()
    assert len(seen) == len(set(seen)) >= 31


def test_a_jobs_page_says_why_it_went_back_and_what_was_kept(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    with api.store.begin() as unit:
        job = lifecycle.submit(unit, farm.first_id, NewJob(spec(), priority=Priority.BULK))[0]
        (sent,) = lifecycle.dispatch(unit, [Assignment(job.id, farm.worker.name)], 60)
        job_edges.claim(unit, job.id, sent.epoch, farm.worker.name, 60)
        job_edges.start(unit, job.id, sent.epoch, 20)
        held = HeldJob(job.id, sent.epoch)
        lifecycle.save_checkpoint(unit, held, Checkpoint().extended(sent.epoch, 12, 100, fresh=True))
        lifecycle.preempt(unit, job.id, sent.epoch)
        (sent,) = lifecycle.dispatch(unit, [Assignment(job.id, farm.worker.name)], 60)
        job_edges.claim(unit, job.id, sent.epoch, farm.worker.name, 60)
        job_edges.start(unit, job.id, sent.epoch, 20)
        lifecycle.note_resumed(unit, HeldJob(job.id, sent.epoch), 12)
    page = enter(farm.operator)
    page.goto(f"/farm/jobs/{job.id}")
    history = page.locator(".timeline")
    expect(history).to_contain_text("preempted, 12 steps kept")
    facts = page.locator("dl.facts.stacked").last
    expect(facts).to_contain_text("12 steps of an earlier attempt")
    expect(facts).to_contain_text("1 time for interactive jobs")
    with api.store.begin() as unit:
        lifecycle.cancel(unit, farm.first_id, job.id)
        lifecycle.confirm_cancel(unit, job.id, sent.epoch)


def test_an_edited_job_is_checked_and_submitted(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.operator)
    page.goto(f"/farm/jobs/{farm.succeeded}")
    page.click("text=Edit and resubmit")
    page.fill("[name=num_inference_steps]", "0")
    page.fill("[name=prompt]", "a red cube on a blue background")
    page.click("text=Submit as a new job")
    expect(page.get_by_role("alert")).to_contain_text("1 field to correct")
    expect(page.locator("[name=num_inference_steps]")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("[name=prompt]")).to_have_value("a red cube on a blue background")
    page.fill("[name=num_inference_steps]", "6")
    page.fill("[name=seed]", "")
    page.click("text=Submit as a new job")
    expect(page.get_by_role("status")).to_have_text("Submitted.")
    job = api.job(page.url.rpartition("/")[2])
    assert (job.spec.prompt, job.spec.num_inference_steps) == ("a red cube on a blue background", 6)


def test_images_are_looked_at_ticked_and_taken_home(lived_in: LivedIn, enter: Enter) -> None:
    _, farm = lived_in
    page = enter(farm.operator)
    page.goto(f"/farm/batches/{farm.batch}")
    page.locator("a[data-lightbox]").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("seed 100")
    page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("seed 101")
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    boxes = page.locator("input[name=job]")
    boxes.nth(0).check()
    boxes.nth(1).check()
    expect(page.get_by_text("2 ticked:")).to_be_visible()
    page.get_by_role("button", name="Rerun with another seed").click()
    page.get_by_role("button", name="Rerun 2 jobs").click()
    expect(page.get_by_role("status")).to_contain_text("2 jobs submitted with another seed")
    base = f"/farm/batches/{farm.batch}"
    assert page.request.get(f"{base}/images.zip").body().startswith(b"PK")
    assert len(page.request.get(f"{base}/results.jsonl").text().splitlines()) == 24
    assert len(page.request.get(f"{base}/errors.jsonl").text().splitlines()) == 4


def test_a_job_is_submitted_with_a_painted_mask(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.operator)
    page.get_by_role("link", name="Render", exact=True).click()
    page.get_by_role("link", name="a red ball on a blue background").click()
    expect(page.locator("[name=prompt]")).to_have_value("a red ball on a blue background")
    expect(page.locator("#image")).to_be_hidden()
    page.get_by_label("inpainting").check()
    page.set_input_files("#image", {"name": "ball.png", "mimeType": "image/png", "buffer": scene(7)[1]})
    canvas = page.locator("canvas")
    canvas.scroll_into_view_if_needed()
    frame = canvas.bounding_box()
    assert frame is not None
    page.mouse.move(frame["x"] + frame["width"] / 4, frame["y"] + frame["height"] / 4)
    page.mouse.down()
    page.mouse.move(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 4, steps=4)
    page.mouse.up()
    canvas.focus()
    for key in ("Shift+ArrowDown", "Shift+ArrowDown", "Space", "Shift+ArrowDown", "Space"):
        page.keyboard.press(key)
    expect(page.get_by_text("3 strokes painted.")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    page.fill("[name=num_inference_steps]", "0")
    page.get_by_role("button", name="Render").click()
    expect(page.get_by_role("alert")).to_contain_text("1 field to correct")
    page.fill("[name=num_inference_steps]", "5")  # the images are kept
    page.get_by_role("button", name="Render").click()
    expect(page.get_by_role("status")).to_have_text("Submitted.")
    job = api.job(page.url.rpartition("/")[2])
    assert (job.spec.task, job.spec.num_inference_steps) == ("inpainting", 5)
    assert job.spec.prompt == "a red ball on a blue background"
    mask = Image.open(io.BytesIO(api.storage.get(job.spec.inputs["mask_image"][0].key))).convert("L")
    assert mask.size == (128, 128)
    assert mask.getpixel((48, 32)) == 255  # in the middle of the stroke
    assert mask.getpixel((64, 57)) == 255  # the first dot of the keyboard
    assert mask.getpixel((64, 80)) == 0  # the second one was undone
    assert mask.getpixel((120, 120)) == 0


def test_without_javascript_the_mask_is_a_file(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.tenant, java_script_enabled=False)
    page.goto("/farm/render")
    page.get_by_label("inpainting").check()
    page.fill("[name=prompt]", "a green cube on a white background")
    page.set_input_files("#image", {"name": "a.png", "mimeType": "image/png", "buffer": scene(8)[1]})
    white = io.BytesIO()
    Image.new("L", (128, 128), 255).save(white, "PNG")
    page.set_input_files("#mask_image", {"name": "mask.png", "mimeType": "image/png", "buffer": white.getvalue()})
    page.get_by_role("button", name="Render").click()
    expect(page.get_by_role("status")).to_have_text("Submitted.")
    job = api.job(page.url.rpartition("/")[2])
    assert job.tenant_id == farm.other_id
    assert set(job.spec.inputs) == {"image", "mask_image"}
    refused = enter(farm.reader)
    assert status(refused, "/farm/render") == 403


def test_a_file_is_checked_before_it_is_submitted(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.operator)
    page.get_by_role("link", name="New batch").click()
    bad = f"prompt,seed,num_inference_steps\na red ball,1,\na blue cube,2,{MAX_STEPS + 1}\n".encode()
    page.set_input_files("[name=file]", {"name": "jobs.csv", "mimeType": "text/csv", "buffer": bad})
    page.fill("[name=name]", "from-a-file")
    page.fill("[name=num_inference_steps]", "7")
    page.get_by_role("button", name="Check").click()
    row = page.locator("#checked tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("num_inference_steps")
    expect(row.locator("td").first).to_have_text("3")
    expect(page.get_by_role("button", name="Submit")).to_have_count(0)
    good = "".join(json.dumps({"prompt": f"a red ball {one}", "seed": one}) + "\n" for one in range(3)).encode()
    page.set_input_files("[name=file]", {"name": "jobs.jsonl", "mimeType": "", "buffer": good})
    page.get_by_role("button", name="Check").click()
    page.get_by_role("button", name="Submit 3 jobs").click()
    expect(page.get_by_role("status").first).to_have_text("Submitted: 3 jobs.")
    with api.store.begin() as unit:
        jobs = unit.jobs.of_batch(page.url.rpartition("/")[2], (), 0, 10)
    assert [(job.spec.seed, job.spec.num_inference_steps) for job in jobs] == [(0, 7), (1, 7), (2, 7)]


def test_a_chain_is_followed_from_both_ends(lived_in: LivedIn, enter: Enter) -> None:
    api, _ = lived_in
    key = api.new_key(Scope.SUBMIT, Scope.READ)
    with api.client(key) as client:
        ball = {"task": "text-to-image", "prompt": "a red ball", "width": 64, "height": 64}
        parent = client.post("/v1/jobs", json=ball).raise_for_status().json()["id"]
        edit = {"task": "image-to-image", "prompt": "a blue ball", "image": parent, "width": 64, "height": 64}
        child = client.post("/v1/jobs", json=edit).raise_for_status().json()["id"]
    page = enter(key)
    page.goto(f"/farm/jobs/{child}")
    expect(page.locator(".banner", has_text=f"Waits for {parent}")).to_be_visible()
    page.click(f"figcaption a[href='/farm/jobs/{parent}']")
    expect(page).to_have_url(re.compile(f"{parent}$"))
    expect(page.get_by_role("heading", name="Used by")).to_be_visible()
    page.click(f"ul.lines a[href='/farm/jobs/{child}']")
    expect(page).to_have_url(re.compile(f"{child}$"))
