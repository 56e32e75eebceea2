"""Tenants, their keys, their limits and their usage; and that no tenant reaches another's things."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import pytest

from farm.domain.worker import Device, WorkerInfo
from farm.settings import Settings
from farm.store.tenants import Scope
from tests.api_server import Api, Hand, png, running

JOB = {"task": "text-to-image", "model": "starter", "prompt": "a red ball on a blue background"}


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings(max_wait_seconds=0.2)) as made:
        yield made


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation.get("security"):
                yield method.upper(), path, operation


def sample(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """A value that the schema allows, as far as a walk needs one."""
    while "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        schema = document["components"]["schemas"][name]
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return sample(schema[choice][0], document)
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: sample(properties[name], document) for name in schema.get("required", [])}
        case "array":
            return [sample(schema["items"], document)] * schema.get("minItems", 0)
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case _:
            return "https://example.com/hook" if schema.get("format") == "uri" else "x"


def things(api: Api) -> dict[str, str]:
    """One thing of each kind, all of the first tenant, by the name of the path's parameter."""
    with api.client() as client:
        file = client.post("/v1/files", files={"file": ("one.png", png(), "image/png")}).raise_for_status().json()
        job = client.post("/v1/jobs", json=JOB).raise_for_status().json()
        batch = client.post("/v1/batches", json={"name": "b", "jobs": [JOB]}).raise_for_status().json()
        endpoint = (
            client.post("/v1/webhooks/endpoints", json={"url": "https://8.8.8.8/hook", "events": ["job.succeeded"]})
            .raise_for_status()
            .json()
        )
        key = client.post("/v1/keys", json={"name": "k"}).raise_for_status().json()
    return {
        "file_id": file["id"], "job_id": job["id"], "batch_id": batch["id"], "endpoint_id": endpoint["id"],
        "key_id": key["id"], "tenant_id": api.tenant_id, "index": "0", "delivery_id": "msg_" + "0" * 32,
    }  # fmt: skip


def test_no_route_of_the_document_shows_or_changes_another_tenants_things(api: Api) -> None:
    found = things(api)
    other = api.new_tenant("other")
    # what a tenant has; `operate` and `admin` are of those who run the farm, and reach all tenants
    stranger = api.new_key(Scope.SUBMIT, Scope.READ, tenant_id=other)
    secrets = {one for name, one in found.items() if name not in ("index", "delivery_id")}
    walked = 0
    with api.client(stranger) as client, api.client(api.new_key()) as powerless:
        document = client.get("/openapi.json").json()
        for method, path, operation in operations(document):
            names = re.findall(r"{(\w+)}", path)
            url = re.sub(r"{(\w+)}", lambda name: found.get(name[1], "unknown"), path)
            body: dict[str, Any] = {}
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" in content:
                body["json"] = sample(content["application/json"]["schema"], document)
            where = f"{method} {path}"
            refused = powerless.request(method, url, **body)
            assert refused.status_code == 403, f"{where} with a key without scopes: {refused.status_code}"
            answer = client.request(method, url, **body)
            owned = [name for name in names if name in found and name != "index"]
            if owned:
                walked += 1
                # a body that the walk could not guess is refused before anything is looked up: that tells nothing
                allowed = {403, 404, 422} if body else {403, 404}
                assert answer.status_code in allowed, f"{where} of another tenant: {answer.status_code} {answer.text}"
            elif method == "GET":
                assert answer.status_code < 500, where
                assert not any(secret in answer.text for secret in secrets), f"{where} tells of another tenant"
    assert walked >= 20
    with api.client() as client:  # and nothing of it was changed
        assert client.get(f"/v1/jobs/{found['job_id']}").json()["state"] == "queued"
        assert client.get(f"/v1/batches/{found['batch_id']}").json()["state"] == "in_progress"
        assert client.get(f"/v1/webhooks/endpoints/{found['endpoint_id']}").status_code == 200


def test_an_administrator_makes_changes_and_removes_tenants(api: Api) -> None:
    with api.client() as client:
        made = client.post("/v1/tenants", json={"name": "acme", "weight": 2, "max_queued": 5})
        assert made.status_code == 201, made.text
        url = f"/v1/tenants/{made.json()['id']}"
        assert client.post("/v1/tenants", json={"name": "acme"}).status_code == 409
        changed = client.patch(url, json={"max_queued": None, "retention_days": 7, "storage_bytes": 10}).json()
        assert (changed["max_queued"], changed["retention_days"], changed["weight"]) == (None, 7, 2.0)
        for without in ("name", "weight"):  # a tenant has both, so null is no value of theirs
            refused = client.patch(url, json={without: None})
            assert refused.status_code == 422, refused.text
            assert refused.json()["errors"][0]["field"] == without
        assert client.get(url).json() == changed
        assert {one["name"] for one in client.get("/v1/tenants").json()["data"]} == {"tests", "acme"}
        key = client.post(f"/v1/keys?tenant={made.json()['id']}", json={"name": "theirs", "scopes": ["read"]}).json()
        with api.client(key["key"]) as theirs:
            assert theirs.get("/v1/jobs").status_code == 200
            assert theirs.get("/v1/tenants").status_code == 403
        assert client.delete(url).status_code == 200
        assert client.get(url).status_code == 404
        with api.client(key["key"]) as theirs:
            assert theirs.get("/v1/jobs").status_code == 401
        client.post("/v1/jobs", json=JOB).raise_for_status()
        assert client.delete(f"/v1/tenants/{api.tenant_id}").status_code == 409


def test_both_keys_of_a_rotation_live_until_the_old_one_is_revoked(api: Api) -> None:
    with api.client() as client:
        old = client.post("/v1/keys", json={"name": "site"}).json()
        new = client.post(f"/v1/keys/{old['id']}/rotate").json()
        assert (new["name"], new["scopes"]) == (old["name"], old["scopes"])
        for key in (old, new):
            with api.client(key["key"]) as site:
                assert site.get("/v1/jobs").status_code == 200
        client.delete(f"/v1/keys/{old['id']}").raise_for_status()
        assert client.post(f"/v1/keys/{old['id']}/rotate").status_code == 409
    with api.client(old["key"]) as site:
        assert site.get("/v1/jobs").status_code == 401
    with api.client(new["key"]) as site:
        assert site.get("/v1/jobs").status_code == 200


def test_usage_is_counted_with_success_and_the_limits_of_a_day_and_of_storage_refuse_more(api: Api) -> None:
    hand = Hand(api)
    hand.join(WorkerInfo(hand.name, "boot", "test", Device("cpu", "cpu0", "a processor", 2**30, "float32"), 1, 2, 1))
    with api.client() as client:
        for _ in range(2):
            job = client.post("/v1/jobs", json=JOB | {"num_outputs": 2}).raise_for_status().json()
            hand.succeed(hand.begin(job["id"]))
        failed = client.post("/v1/jobs", json=JOB).raise_for_status().json()
        hand.fail(hand.begin(failed["id"]))
        (used,) = client.get("/v1/usage").raise_for_status().json()["data"]
        assert (used["tenant"], used["model"], used["jobs"], used["outputs"]) == ("tests", "starter", 2, 4)
        (first, _) = client.get(f"/v1/jobs/{job['id']}").json()["outputs"]
        assert used["bytes"] == 4 * len(png(first["width"], first["height"]))
        assert used["device_seconds"] > 0
        sheet = client.get("/v1/usage?format=csv")
        assert sheet.headers["content-type"].startswith("text/csv")
        (row,) = csv.DictReader(io.StringIO(sheet.text))
        assert (row["outputs"], row["tenant"]) == ("4", "tests")

        def submit(**caps: float | None) -> Any:
            client.patch(f"/v1/tenants/{api.tenant_id}", json=caps).raise_for_status()
            with api.store.begin() as unit:
                unit.usage.measure_storage()
            return client.post("/v1/jobs", json=JOB)

        refused = submit(device_seconds_per_day=used["device_seconds"] / 2)
        assert (refused.status_code, "device-seconds today" in refused.json()["detail"]) == (429, True)
        assert 0 < int(refused.headers["retry-after"]) <= 24 * 3600
        refused = submit(device_seconds_per_day=None, storage_bytes=used["bytes"])
        assert (refused.status_code, "bytes" in refused.json()["detail"]) == (429, True)
        assert 0 < int(refused.headers["retry-after"]) <= 24 * 3600
        assert submit(storage_bytes=used["bytes"] + 1).status_code in (201, 202)
