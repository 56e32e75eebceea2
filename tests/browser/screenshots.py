"""Images of each page for the docs: ``make screenshots``. Desktop and light for all, phone and dark for some."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser
from sqlalchemy import text

from tests.api_server import Api
from tests.browser.seed_data import Furnished
from tests.waiting import wait_until

OUT = Path(__file__).parents[2] / "docs" / "images" / "dashboard"
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
MOST_BYTES = 100_000


def paths(farm: Furnished) -> dict[str, str]:
    """Every page, by the name of its image."""
    return {
        "overview": "/farm",
        "workers": "/farm/workers",
        "worker": f"/farm/workers/one?name={farm.worker.name}",
        "models": "/farm/models",
        "render": "/farm/render",
        "studio": f"/farm/studio?job={farm.succeeded}",
        "gallery": "/farm/gallery",
        "batch-new": "/farm/batches/new",
        "batches": "/farm/batches",
        "batch": f"/farm/batches/{farm.batch}",
        "batch-open": f"/farm/batches/{farm.open_batch}",
        "jobs": "/farm/jobs",
        "job": f"/farm/jobs/{farm.succeeded}",
        "job-running": f"/farm/jobs/{farm.running.id}",
        "job-failed": f"/farm/jobs/{farm.failed}",
        "job-edit": f"/farm/jobs/{farm.succeeded}/edit",
        "queues": "/farm/queues",
        "webhooks": "/farm/webhooks",
        "webhook": f"/farm/webhooks/{farm.endpoint}",
        "delivery": f"/farm/webhooks/deliveries/{farm.dead}",
        "keys": "/farm/keys",
        "audit": "/farm/audit",
        "tenants": "/farm/tenants",
        "tenant": f"/farm/tenants/{farm.first_id}",
    }


#: Whether all images in sight are there, and the studio has drawn its form and its result.
SHOWN = """
[...document.images].every((one) => one.complete || one.getBoundingClientRect().top > innerHeight)
&& (!document.getElementById('studio') || document.querySelector('#result .made img')?.complete)
"""

#: What is managed besides desktop and light.
MORE = {
    ("overview", "desktop", "dark"),
    ("overview", "phone", "light"),
    ("render", "phone", "dark"),
    ("batch", "phone", "dark"),
    ("gallery", "phone", "dark"),
    ("studio", "phone", "light"),
    ("studio", "desktop", "dark"),
    ("job", "phone", "light"),
    ("job-running", "desktop", "dark"),
    ("webhook", "desktop", "dark"),
    ("tenant", "phone", "light"),
}


@pytest.mark.timeout(900)
def test_screenshots(browser: Browser, lived_in: tuple[Api, Furnished]) -> None:
    api, farm = lived_in
    _day(api)
    OUT.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        for device, (width, height) in SIZES.items():
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, base_url=api.url
            )
            page = context.new_page()
            page.goto("/farm/login")
            if device == "desktop" and scheme == "light":
                _watch(page.screenshot(), "login")
            page.fill("#api_key", farm.operator)
            page.click("button[type=submit]")
            for name, path in paths(farm).items():
                if (device, scheme) == ("desktop", "light") or (name, device, scheme) in MORE:
                    page.goto(path)
                    wait_until(functools.partial(page.evaluate, SHOWN), what="its images are there")
                    suffix = "" if (device, scheme) == ("desktop", "light") else f"-{device}-{scheme}"
                    _watch(page.screenshot(full_page=name == "job"), name + suffix)
            context.close()


def _day(api: Api) -> None:
    """A day that has passed before: events of jobs that are gone, numbered below all others."""
    with api.store.begin() as unit:
        unit.session.execute(
            text("""
                INSERT INTO event (id, tenant_id, type, epoch, data, fanned_out, created_at)
                SELECT -n, CAST(:tenant AS uuid), CASE WHEN n % 31 = 0 THEN 'job.failed' ELSE 'job.succeeded' END, 1,
                       CASE WHEN n % 31 = 0 THEN '{"code": "out_of_memory"}'
                            ELSE jsonb_build_object('outputs', round(5 + 3 * sin(n / 130.0) + n % 3)) END,
                       true, now() - interval '23 hours' * (n / 1500.0) - interval '1 hour'
                FROM generate_series(1, 1500) AS n
            """),
            {"tenant": api.tenant_id.removeprefix("ten_")},
        )
        unit.session.execute(
            text("""
                INSERT INTO usage (day, tenant_id, model, slot, jobs, outputs, bytes, device_seconds)
                SELECT (now() AT TIME ZONE 'UTC')::date - n, CAST(:tenant AS uuid), model, 0, images, images,
                       images * 21000, images * seconds
                FROM generate_series(1, 29) AS n, (VALUES ('starter', 0.8), ('sdxl', 4.1)) AS used (model, seconds),
                     LATERAL (SELECT round(900 + 500 * sin(n / 3.0) + 37 * (n % 5))::int AS images) AS made
                ON CONFLICT DO NOTHING
            """),
            {"tenant": api.tenant_id.removeprefix("ten_")},
        )
        unit.tenants.change(api.tenant_id, max_queued=2_000_000, storage_bytes=500 * 2**30, retention_days=90)


def _watch(png: bytes, name: str) -> None:
    """Save as WebP, as good as fits."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for quality in (90, 80, 65, 50):
        out = io.BytesIO()
        image.save(out, "WEBP", quality=quality, method=6)
        if len(out.getvalue()) <= MOST_BYTES:
            break
    (OUT / f"{name}.webp").write_bytes(out.getvalue())
