"""webuiapi, unmodified, against the farm."""

from __future__ import annotations

import io

from PIL import Image

from farm.domain.job import JobFilter
from farm.domain.states import JobState
from tests.api_server import Api
from tests.compat.environment import run_client


def test_the_web_uis_client_renders_watches_and_interrupts(api: Api) -> None:
    with api.client() as client:  # what came another way is none of this client's business
        other = client.post("/v1/jobs", json={"task": "text-to-image", "prompt": "wait"}).json()["id"]
    run_client("a1111.py", FARM_URL=api.url, FARM_KEY=api.key)
    with api.store.begin() as unit:
        jobs, _ = unit.jobs.page(api.tenant_id, JobFilter(custom_id="sdapi"), None, 200)
        untouched = unit.jobs.get(other)
    assert untouched is not None
    assert untouched.state is JobState.QUEUED
    jobs.reverse()
    assert [job.spec.task for job in jobs[:5]] == [
        *["text-to-image"] * 2,
        "image-to-image",
        *["inpainting"] * 2,
    ]
    first = jobs[0].spec
    assert (first.scheduler, first.num_inference_steps, first.guidance_scale) == ("euler-ancestral", 4, 3)
    assert (first.negative_prompt, jobs[0].priority.value) == ("blur", "interactive")
    corners = []
    for job in jobs[3:5]:
        with Image.open(io.BytesIO(api.storage.get(job.spec.inputs["mask_image"][0].key))) as mask:
            corners.append((mask.convert("L").getpixel((0, 0)), mask.convert("L").getpixel((63, 0))))
    assert corners == [(255, 0), (0, 255)]
