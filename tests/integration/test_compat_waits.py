"""Foreign clients that wait for images: a wait that ends costs no work, and the next equal request has the result."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from farm.api.compat import submission
from farm.domain.job import Job, JobFilter
from farm.domain.states import JobState
from farm.settings import Settings
from farm.store.tenants import Scope
from tests.api_server import Api, Hand, png, running
from tests.waiting import wait_until

PATH = "/compat/openai/v1/images/generations"
CASES = Path(__file__).parent / "cases"


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings(compat_wait_seconds=1.0)) as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client() as one:
        yield one


def jobs(api: Api) -> list[Job]:
    with api.store.begin() as unit:
        return unit.jobs.page(api.tenant_id, JobFilter(), None, 200)[0]


def test_a_request_that_is_sent_again_after_a_timeout_is_answered_by_the_same_job(
    api: Api, client: httpx2.Client
) -> None:
    body = {"prompt": "a red ball", "n": 1, "size": "64x64"}
    assert client.post(PATH, json=body).status_code == 504
    (job,) = jobs(api)
    running_job = Hand(api).begin(job.id)
    again = client.post(PATH, json=body, headers={"x-stainless-retry-count": "1"})
    assert (again.status_code, job.id in again.json()["error"]["message"]) == (504, True)
    assert [(one.id, one.state) for one in jobs(api)] == [(job.id, JobState.RUNNING)]
    assert client.post(PATH, json=body | {"size": "128x64"}).status_code == 504
    assert len(jobs(api)) == 2  # another request
    Hand(api).succeed(running_job)
    answered = client.post(PATH, json=body)
    assert (answered.status_code, answered.json()["job_id"]) == (200, job.id)
    assert client.post(PATH, json=body).status_code == 504
    assert len(jobs(api)) == 3  # what was answered is not answered twice


def test_a_queued_job_of_a_client_that_hung_up_is_canceled_unless_it_comes_back(
    farm_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "RETURN_SECONDS", 1.0)
    monkeypatch.setattr(submission, "CONNECTION_CHECK_SECONDS", 0.1)
    with running(Settings(compat_wait_seconds=60)) as api:
        for count, prompt in enumerate(("gone", "runs"), start=1):
            body = json.dumps({"prompt": prompt})
            head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: farm\r\nAuthorization: Bearer {api.key}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", urlsplit(api.url).port or 0)) as raw:
                raw.sendall((head + body).encode())
                wait_until(lambda count=count: len(jobs(api)) == count, 20, what="the job is submitted")  # type: ignore[misc]
                if prompt == "runs":
                    Hand(api).begin(jobs(api)[0].id)
        states = {"gone": JobState.CANCELED, "runs": JobState.RUNNING}
        wait_until(lambda: {job.spec.prompt: job.state for job in jobs(api)} == states, 20, what="one job is canceled")


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("*.json")))
def test_the_requests_of_real_clients_become_jobs(api: Api, client: httpx2.Client, name: str) -> None:
    case = json.loads(re.sub(r"\b(512|1024)\b", "256", (CASES / name).read_text("utf-8")))  # what the model can render
    for request in case["requests"]:
        answer = client.request(request.get("method", "POST"), request["path"], json=request.get("body"))
        waited = 504 if request.get("renders") else 200
        assert answer.status_code == waited, f"{request['path']}: {answer.text}"
    rendered = [request for request in case["requests"] if request.get("renders")]
    assert len(jobs(api)) == len(rendered)
    for job, request in zip(reversed(jobs(api)), rendered, strict=True):
        shown = job.spec.request()
        assert {field: shown[field] for field in request["renders"]} == request["renders"]


def test_a_tenant_has_other_names_for_models(api: Api, client: httpx2.Client) -> None:
    aliases = {"dall-e-3": "starter", "stability-ai/sdxl": "starter"}
    wrong = client.patch(f"/v1/tenants/{api.tenant_id}", json={"model_aliases": {"x": "no-such"}})
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "model_aliases.x")
    made = client.patch(f"/v1/tenants/{api.tenant_id}", json={"model_aliases": aliases})
    assert made.json()["model_aliases"] == aliases
    listed = {one["id"] for one in client.get("/compat/openai/v1/models").json()["data"]}
    assert {"starter", "dall-e-3"} <= listed
    assert client.post(PATH, json={"prompt": "x", "model": "dall-e-3"}).status_code == 504
    url = "/compat/replicate/v1/predictions"
    predicted = client.post(url, json={"version": "stability-ai/sdxl:0123abcd", "input": {"prompt": "y"}})
    assert predicted.status_code == 201, predicted.text
    line = {"task": "text-to-image", "prompt": "z", "model": "dall-e-3"}
    assert client.post("/v1/batches", json={"jobs": [line]}).status_code == 201
    assert {job.spec.model for job in jobs(api)} == {"starter"}
    other = api.new_key(*Scope, tenant_id=api.new_tenant("other"))
    with api.client(other) as stranger:
        assert stranger.post(PATH, json={"prompt": "x", "model": "dall-e-3"}).status_code == 400


def test_a_batch_of_nothing_but_bad_requests_has_them_all_in_its_error_file(api: Api, client: httpx2.Client) -> None:
    lines = [
        {"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"model": "gpt-image-1"}},
        {"custom_id": "b", "method": "GET", "url": "/v1/images/generations", "body": {"prompt": "x"}},
    ]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines) + b"not json\n"
    url = "/compat/openai/v1"
    uploaded = client.post(f"{url}/files", data={"purpose": "batch"}, files={"file": ("r.jsonl", content)}).json()
    asked = {"input_file_id": uploaded["id"], "endpoint": "/v1/images/generations", "completion_window": "24h"}
    made = client.post(f"{url}/batches", json=asked)
    assert made.status_code == 200, made.text
    batch = made.json()
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 3, "completed": 0, "failed": 3})
    assert batch["output_file_id"] is None
    errors = client.get(f"{url}/files/{batch['error_file_id']}/content").text.splitlines()
    assert [json.loads(line)["custom_id"] for line in errors[:2]] == ["a", "b"]
    assert len(errors) == 3
    native = client.get(f"/v1/batches/{batch['id']}").json()
    assert (native["state"], native["progress"], native["skipped"]) == ("completed", 1.0, 3)


def test_a_client_may_send_the_metadata_of_an_upload_as_a_file(client: httpx2.Client) -> None:
    files = {
        "content": ("x.png", png(), "image/png"),
        "metadata": ("blob", b"{}", "application/json"),
    }
    assert client.post("/compat/replicate/v1/files", files=files).status_code == 201


def test_png_info_has_the_text_of_an_image(api: Api, client: httpx2.Client) -> None:
    out = io.BytesIO()
    info = PngInfo()
    info.add_text("parameters", "a red ball\nSteps: 4")
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=info)
    answer = client.post("/sdapi/v1/png-info", json={"image": base64.b64encode(out.getvalue()).decode()})
    assert answer.json()["info"] == "a red ball\nSteps: 4"
