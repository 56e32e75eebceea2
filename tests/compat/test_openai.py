"""OpenAI's official clients, unmodified, against the farm."""

from __future__ import annotations

import io

from PIL import Image

from farm.domain.job import Job, JobFilter
from farm.domain.states import JobState
from farm.store.tenants import Scope
from tests.api_server import Api
from tests.compat.environment import run_client, run_node
from tests.waiting import wait_until


def jobs(api: Api) -> list[Job]:
    """The tenant's jobs, oldest first."""
    with api.store.begin() as unit:
        found, _ = unit.jobs.page(api.tenant_id, JobFilter(), None, 200)
    return found[::-1]


def test_images_are_made_edited_and_refused_in_the_clients_own_terms(api: Api) -> None:
    run_client("openai_images.py", FARM_URL=api.url, FARM_KEY=api.key)
    made = jobs(api)
    first = made[0].spec
    assert (first.num_inference_steps, first.guidance_scale, first.seed) == (3, 1.5, 7)
    assert made[1].metadata == {"user": "u1"}
    tasks = [job.spec.task for job in made]
    assert tasks[:5] == ["text-to-image"] * 3 + ["inpainting", "image-to-image"]
    # what OpenAI's mask leaves transparent is white in the farm's
    with Image.open(io.BytesIO(api.storage.get(made[3].spec.inputs["mask_image"][0].key))) as mask:
        assert (mask.getpixel((0, 0)), mask.getpixel((63, 0))) == (255, 0)
    assert (made[4].spec.strength, made[4].spec.num_inference_steps) == (0.5, 4)
    slow = next(job for job in made if job.spec.prompt == "slow")
    wait_until(lambda: jobs(api)[-1].state is JobState.RUNNING, what="the job of the client that hung up goes on")
    assert made[-1].id == slow.id


def test_a_file_of_requests_becomes_a_batch_and_two_files_of_answers(api: Api) -> None:
    batch_id = run_client("openai_batch.py", FARM_URL=api.url, FARM_KEY=api.key).split()[-1]
    with api.store.begin() as unit:
        batch = unit.batches.get(batch_id, api.tenant_id)
    assert batch is not None
    assert batch.name == "night.jsonl"
    assert {job.priority.value for job in jobs(api)} == {"bulk"}
    # the native API knows the same batch
    with api.client() as client:
        found = client.get(f"/v1/batches/{batch_id}").json()
        errors = client.get(f"/v1/batches/{batch_id}/errors").text.splitlines()
    stranger = api.new_key(*Scope, tenant_id=api.new_tenant("other"))
    assert found["request_counts"]["succeeded"] == 2
    assert len(errors) == 4
    with api.client(stranger) as client:
        for path in (f"batches/{batch_id}", f"files/output_{batch_id}", f"files/output_{batch_id}/content"):
            assert client.get(f"/compat/openai/v1/{path}").status_code == 404
        assert client.get("/compat/openai/v1/files").json()["data"] == []


def test_the_client_for_node_works_too(api: Api) -> None:
    assert run_node("openai_images.mjs", FARM_URL=api.url, FARM_KEY=api.key).strip() == "done"
