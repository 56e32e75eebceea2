"""Clips and sounds on the pages: players, thumbnails, and parts of files."""

from __future__ import annotations

import hashlib
import io

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from farm.domain.job import NewJob, Output
from farm.domain.media import MediaMetadata
from farm.objects import keys
from tests import job_edges
from tests.api_server import Api
from tests.browser.conftest import Enter, LivedIn
from tests.browser.seed_data import Furnished
from tests.unit.test_media_encoders import clip, tone
from tests.waiting import wait_until
from workers.media import audio, video


def _finished_with(api: Api, farm: Furnished, media_type: str, data: bytes, metadata: MediaMetadata) -> str:
    """A job of the operator's tenant whose output is this file; its id."""
    with api.store.begin() as unit:
        job_id = unit.jobs.insert(api.tenant_id, [NewJob(api.job(farm.succeeded).spec)])[0]
    job = farm.worker.begin(job_id)
    key = keys.output_key(job.tenant_id, job.id, job.epoch, 0, keys.extension(media_type))
    api.storage.put(key, data, media_type)
    output = Output(0, key, media_type, len(data), hashlib.sha256(data).hexdigest(), 7, metadata)
    with api.store.begin() as unit:
        job_edges.succeed(unit, job.id, job.epoch, [output], {})
    return job_id


def test_clips_and_sounds_play_on_their_page_and_have_thumbnails_in_lists(lived_in: LivedIn, enter: Enter) -> None:
    api, farm = lived_in
    page = enter(farm.operator)
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text) if "Content Security" in message.text else None)

    body, metadata = video.encode(clip(24, 12), "webm", "{}")
    job_id = _finished_with(api, farm, "video/webm", body, metadata)
    page.goto(f"/farm/jobs/{job_id}")
    player = page.locator(".outputs video")
    expect(player).to_be_visible()
    player.evaluate("async (one) => { one.muted = true; one.currentTime = 1.5; await one.play(); }")
    wait_until(lambda: player.evaluate("one => one.currentTime") > 1.5, what="the clip plays from the middle")
    assert player.evaluate("one => [one.videoWidth, one.videoHeight]") == [64, 48]
    assert player.evaluate("one => one.duration") == pytest.approx(2, abs=0.1)
    expect(page.get_by_text("64 × 48 · 2 s · 12 fps")).to_be_visible()
    poster = page.request.get(f"/farm/images/{job_id}/0?side=160")
    with Image.open(io.BytesIO(poster.body())) as image:
        assert (image.format, image.size) == ("WEBP", (64, 48))

    part = page.request.get(f"/farm/images/{job_id}/0", headers={"Range": "bytes=4-11"})
    assert (part.status, part.body()) == (206, body[4:12])
    assert part.headers["content-range"] == f"bytes 4-11/{len(body)}"
    assert page.request.get(f"/farm/images/{job_id}/0", headers={"Range": "bytes=-3"}).body() == body[-3:]
    assert page.request.get(f"/farm/images/{job_id}/0", headers={"Range": f"bytes={len(body)}-"}).status == 416
    assert page.request.get(f"/farm/images/{job_id}/0").body() == body

    body, metadata = audio.encode(tone(1, channels=2), "wav", "{}")
    sound_id = _finished_with(api, farm, "audio/wav", body, metadata)
    page.goto(f"/farm/jobs/{sound_id}")
    player = page.locator(".outputs audio")
    wait_until(lambda: player.evaluate("one => one.duration") == 1, what="the sound is loaded")
    wait_until(
        lambda: page.locator("img.wave").evaluate("one => one.naturalWidth") == 640, what="its waveform is shown"
    )

    page.goto("/farm")
    for job, element in ((job_id, "video"), (sound_id, "audio")):
        _looks_larger(page, job, element)
    assert not refused


def _looks_larger(page: Page, job_id: str, element: str) -> None:
    """The thumbnail of a job's output opens its player over the page."""
    small = page.locator(f"#latest a[href='/farm/jobs/{job_id}']")
    wait_until(lambda: small.locator("img").evaluate("one => one.naturalWidth") > 0, what="a thumbnail is shown")
    small.click()
    shown = page.locator(f"dialog.lightbox {element}")
    wait_until(lambda: shown.evaluate("one => one.readyState") >= 2, what=f"the {element} is loaded")
    page.keyboard.press("Escape")
    expect(page.locator(f"dialog.lightbox {element}")).to_have_count(0)
