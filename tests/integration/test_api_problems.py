"""What a mistake is answered with: one problem document, that names the field, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import psycopg
import pytest

import farm
from farm.settings import Settings
from tests.api_server import Api, running
from tests.conftest import TestServers

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def api(servers: TestServers, migrated_template: str) -> Iterator[Api]:
    """One API for all: these tests leave nothing behind that another one would see."""
    servers.postgres.create_database("api_problems", template=migrated_template)
    given = servers.env(database_url=servers.postgres.url("api_problems"))
    settings = Settings.model_validate(
        {name.removeprefix("FARM_").lower(): value for name, value in given.items()} | {"max_input_bytes": 100_000}
    )
    with running(settings) as one:
        yield one
    servers.postgres.drop_database("api_problems")


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client() as one:
        yield one


def problem(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert {"type", "title", "detail", "instance"} <= body.keys()
    return dict(body)


def test_hostile_bodies_are_refused_and_never_a_server_error(client: httpx2.Client) -> None:
    head = b'{"task":"text-to-image","prompt":"x"'
    bodies = [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b'{"task": NaN}',
        head + b',"guidance_scale":Infinity}',
        head + b',"guidance_scale":1e999}',
        head + b',"guidance_scale":' + b"9" * 400 + b"}",
        head + b',"guidance_scale":true}',
        head + b',"seed":' + b"9" * 4000 + b"}",
        head + b',"seed":' + b"9" * 9000 + b"}",
        head + b',"seed":-1}',
        head + b',"seed":1.5}',
        head + b',"width":100.0}',
        head + b',"metadata":{"a":1}}',
        head + b',"metadata":{"\\u0000":"x"}}',
        head + b',"metadata":{"\\ud800":"x"}}',
        head + b',"custom_id":"\\ud800"}',
        head + b',"webhook":"\\u0000"}',
        head + b',"webhook":"http://127.0.0.1/"}',
        head + b',"model":"\\u0000"}',
        head + b',"\\ud800":1}',
        b'{"task":"text-to-image","prompt":"\\u0000"}',
        b'{"task":"text-to-image","prompt":"\\ud800"}',
        b'{"task":["text-to-image"],"prompt":""}',
        b'{"task":"image-to-image","prompt":"","image":"\\u0000"}',
        b'{"task":"image-to-image","prompt":"","image":"file_\\ud800"}',
        b'{"task":"image-to-image","prompt":"","image":"data:image/png;base64,!"}',
        b"[" * 50_000,
        b'{"a":' * 30_000,
        b'{"task":"text-to-image","prompt":"x","metadata":' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}",
    ]
    for body in bodies:
        found = problem(client.post("/v1/jobs", content=body, headers=JSON), 422)
        assert found["errors"], body[:80]
        for error in found["errors"]:
            assert error["message"]
            assert len(str(error["value"])) <= 100
    problem(client.post("/v1/jobs", content=b'{"a":' * 70_000, headers=JSON), 413)  # beyond 128 KiB of structure


def test_a_problem_names_the_field_as_the_client_wrote_it(client: httpx2.Client) -> None:
    body = {
        "task": "text-to-image",
        "prompt": "x",
        "width": 65,
        "num_inference_steps": 0,
        "metadata": {"a": 1},
        "schedular": "ddim",
    }
    found = problem(client.post("/v1/jobs", json=body), 422)
    by_field = {error["field"]: error for error in found["errors"]}
    assert set(by_field) == {"width", "num_inference_steps", "metadata.a", "schedular"}
    assert by_field["width"]["value"] == 65
    assert "multiple of 8" in by_field["width"]["message"]
    (error,) = problem(
        client.post("/v1/jobs", json={"task": "text-to-image", "prompt": "x", "scheduler": "fast"}), 422
    )["errors"]
    assert (error["field"], error["value"]) == ("scheduler", "fast")
    assert re.search(r"'fast' is not a scheduler; those that run with model .*\bddim\b", error["message"])
    unknown = problem(client.post("/v1/jobs", json={"task": "painting"}), 422)
    assert unknown["errors"][0]["field"] == "task"
    assert "inpainting" in unknown["errors"][0]["message"]


def test_all_refusals_that_need_no_image_come_together(client: httpx2.Client) -> None:
    body = {"task": "text-to-image", "prompt": "x", "model": "none", "webhook": "ftp://x"}
    found = problem(client.post("/v1/jobs", json=body), 422)
    assert [error["field"] for error in found["errors"]] == ["model", "webhook"]


def test_paths_methods_and_types_that_do_not_exist(client: httpx2.Client) -> None:
    for path in (
        "/nope",
        "/v1/nope",
        "/v1/jobs/",
        "/v1/jobs/job_x",
        "/v1/jobs/%00",
        "/v1/jobs/%ff/events",
        "/v1/files/%F0",
    ):
        problem(client.get(path), 404)
    for path in ("/v1/jobs/%00/cancel", "/v1/jobs/x/retry"):
        problem(client.post(path), 404)
    problem(client.delete("/v1/keys/%00"), 404)
    answer = client.patch("/v1/jobs")
    problem(answer, 405)
    assert answer.headers["allow"] == "GET, POST"
    problem(client.post("/v1/jobs", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    problem(client.post("/v1/files", content=b"{}", headers=JSON), 415)
    problem(client.post("/v1/files", content=b"x", headers={"Content-Type": "multipart/form-data"}), 400)
    problem(client.post("/v1/files", files={"other": b"x"}), 422)
    problem(client.post("/v1/files", files={"file": b"x"}), 422)


def test_bodies_beyond_the_limit_are_refused_while_they_are_read(client: httpx2.Client) -> None:
    big = b"0" * 4_000_000
    png = {"Content-Type": "image/png"}
    problem(client.post("/v1/files", content=big, headers=png), 413)

    def chunks() -> Iterator[bytes]:
        for at in range(0, len(big), 50_000):
            yield big[at : at + 50_000]

    problem(client.post("/v1/files", content=chunks(), headers=png), 413)
    problem(client.post("/v1/jobs", content=chunks(), headers=JSON), 413)
    problem(client.post("/v1/files", files={"file": big}), 413)


def test_queries_are_checked(client: httpx2.Client) -> None:
    for query in (
        "limit=0",
        "limit=201",
        "limit=x",
        "state=over",
        "task=x",
        "cursor=x",
        "cursor=%C3%A4",
        "cursor=%00",
        "custom_id=%00",
        "model=%00",
        "created_after=yesterday",
        "created_after=2026-01-01T00:00:00",
        "created_after=17",
    ):
        problem(client.get(f"/v1/jobs?{query}"), 422)


def test_headers_are_checked(client: httpx2.Client) -> None:
    body = {"task": "text-to-image", "prompt": "x"}
    for key in (b"", b"x" * 256, "schlüssel".encode(), b"a\tb"):
        problem(client.post("/v1/jobs", json=body, headers={b"Idempotency-Key": key}), 422)
    for text in ("farm_", "farm_" + "0" * 32 + "_" + "x" * 43, "\xff", "x"):
        problem(client.get("/v1/jobs", headers={b"Authorization": b"Bearer " + text.encode("latin-1")}), 401)
    problem(client.get("/v1/jobs", headers={"Authorization": "Basic eDp5"}), 401)
    given = client.get("/healthz", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert client.get("/healthz", headers={"X-Request-Id": "no good"}).headers["x-request-id"].startswith("req_")


def test_a_database_that_is_away_is_503_and_its_return_is_noticed(api: Api, servers: TestServers) -> None:
    with api.client() as client:
        assert client.get("/v1/jobs").status_code == 200
        with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
            connection.execute("ALTER DATABASE api_problems ALLOW_CONNECTIONS false")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'api_problems'")
            try:
                answer = client.get("/v1/jobs")
                problem(answer, 503)
                assert answer.headers["retry-after"]
                assert client.get("/readyz").json()["database"] == "error"
                assert client.get("/readyz").status_code == 503
                assert client.get("/healthz").status_code == 200
            finally:
                connection.execute("ALTER DATABASE api_problems ALLOW_CONNECTIONS true")
        assert client.get("/v1/jobs").status_code == 200


def test_the_api_says_its_version(client: httpx2.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "version": farm.__version__}
    assert client.get("/openapi.json").json()["info"]["version"] == farm.__version__


def test_the_documents_need_nothing_from_elsewhere(client: httpx2.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<script" not in page.text
    assert "num_inference_steps" in page.text
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            if path.startswith("/v1/"):
                assert operation["security"], path
                assert {"401", "403", "422", "503"} <= operation["responses"].keys(), path
