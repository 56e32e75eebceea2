"""Outputs are found, marked, taken home and deleted over the API, by the client and by the command line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from farm.client import Farm
from farm.domain.gallery import OutputFilter
from farm.settings import Settings
from farm.store.gallery import Gallery, words_match
from farm.store.tenants import Scope
from tests.api_server import Api, Hand, running

from .conftest import worker_info

ROOT = Path(__file__).parents[2]
PROMPTS = ("a red ball on a beach", "a red cube", "a blue ball, rouge et noir", "a green cone")


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client() as one:
        yield one


def rendered(api: Api, client: httpx2.Client, prompt: str, **changes: Any) -> str:
    """The id of a job that succeeded."""
    body = {"task": "text-to-image", "model": "starter", "prompt": prompt} | changes
    job_id = str(client.post("/v1/jobs", json=body).raise_for_status().json()["id"])
    hand = Hand(api)
    hand.succeed(hand.begin(job_id))
    return job_id


@pytest.fixture
def jobs(api: Api, client: httpx2.Client) -> list[str]:
    Hand(api).join(worker_info("test/cpu0"))
    return [
        rendered(api, client, prompt, custom_id=f"item-{number}", metadata={"sku": f"A-{number % 2}"})
        for number, prompt in enumerate(PROMPTS)
    ]


def found(client: httpx2.Client, **query: Any) -> list[str]:
    answer = client.get("/v1/outputs", params=query)
    assert answer.status_code == 200, answer.text
    return [one["prompt"] for one in answer.json()["data"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [3, 2, 1, 0]),
        ({"q": "red"}, [1, 0]),
        ({"q": "RED ball"}, [0]),
        ({"q": '"red ball"'}, [0]),
        ({"q": "ball -red"}, [2]),
        ({"q": "cube or cone"}, [3, 1]),
        ({"q": "nothing"}, []),
        ({"q": "' OR 1=1 --"}, []),
        ({"custom_id": "item-2"}, [2]),
        ({"metadata_key": "sku"}, [3, 2, 1, 0]),
        ({"metadata_key": "sku", "metadata_value": "A-1"}, [3, 1]),
        ({"metadata_key": "colour"}, []),
        ({"media": "video"}, []),
        ({"media": "image", "min_width": 16}, [3, 2, 1, 0]),
        ({"min_width": 5_000}, []),
        ({"model": "starter", "task": "text-to-image"}, [3, 2, 1, 0]),
        ({"model": "other"}, []),
        ({"created_after": "2100-01-01T00:00:00Z"}, []),
        ({"star": "true"}, []),
    ],
)
def test_outputs_are_found_by_what_they_are(
    client: httpx2.Client, jobs: list[str], query: dict[str, Any], expected: list[int]
) -> None:
    assert found(client, **query) == [PROMPTS[number] for number in expected]


def test_each_output_is_on_one_page_however_small_pages_are(
    api: Api, client: httpx2.Client, jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = rendered(api, client, "four", num_outputs=4)
    monkeypatch.setattr("farm.store.gallery.WINDOW", 2)
    for query in ({}, {"model": "starter"}, {"metadata_key": "sku"}):
        seen: list[tuple[str, int]] = []
        cursor, pages = None, 0
        while pages == 0 or cursor:
            page = client.get("/v1/outputs", params={"limit": 3, **query, **({"cursor": cursor} if cursor else {})})
            body = page.raise_for_status().json()
            seen += [(one["job_id"], one["index"]) for one in body["data"]]
            cursor, pages = body["next"], pages + 1
        older = [(job_id, 0) for job_id in reversed(jobs)]
        assert seen == ([] if "metadata_key" in query else [(many, index) for index in range(4)]) + older
    assert client.get("/v1/outputs", params={"cursor": "AAAAAAAAAAAAAAAAAAAAAAAA"}).json()["data"] == []
    assert client.get("/v1/outputs", params={"cursor": "nonsense"}).status_code == 422


def test_another_tenant_finds_marks_and_deletes_nothing_of_it(api: Api, client: httpx2.Client, jobs: list[str]) -> None:
    other = api.new_tenant("other")
    place = {"outputs": [{"job_id": jobs[0], "index": 0}]}
    with api.client(api.new_key(Scope.SUBMIT, Scope.READ, tenant_id=other)) as theirs:
        assert found(theirs) == found(theirs, q="red") == []
        for path, body in (("labels", place | {"star": True}), ("archive", place), ("delete", place)):
            assert theirs.post(f"/v1/outputs/{path}", json=body).status_code == 404, path
        assert theirs.delete(f"/v1/jobs/{jobs[0]}").status_code == 404
    reader = api.new_key(Scope.READ)
    with api.client(reader) as may_read:
        assert len(found(may_read)) == 4
        assert may_read.post("/v1/outputs/labels", json=place | {"star": True}).status_code == 403
        assert may_read.post("/v1/outputs/delete", json=place).status_code == 403


def test_marks_are_put_on_taken_away_and_found(client: httpx2.Client, jobs: list[str]) -> None:
    places = [{"job_id": job_id, "index": 0} for job_id in jobs]

    def change(chosen: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
        answer = client.post("/v1/outputs/labels", json={"outputs": chosen, **changes})
        assert answer.status_code == 200, answer.text
        data: list[dict[str, Any]] = answer.json()["data"]
        return data

    for _ in range(2):  # again changes nothing
        (first, second) = change(places[:2], star=True, add_tags=["hero"], add_to=["Spring 2027"])
    assert (first["star"], first["tags"], first["collections"]) == (True, ["hero"], ["Spring 2027"])
    assert second["job_id"] == jobs[1]
    assert found(client, star=True) == found(client, tag="hero") == [PROMPTS[1], PROMPTS[0]]
    assert found(client, collection="Spring 2027", q="ball") == [PROMPTS[0]]
    assert found(client, collection="Spring 2027", star=True, tag="hero", limit=1) == [PROMPTS[1]]
    change(places[:1], star=False, remove_tags=["hero", "never there"], add_tags=["rest"])
    assert found(client, star=True) == [PROMPTS[1]]
    listed = client.get("/v1/outputs/labels").json()["data"]
    assert [(one["kind"], one["name"], one["outputs"]) for one in listed] == [
        ("collection", "Spring 2027", 2), ("tag", "hero", 1), ("tag", "rest", 1),
    ]  # fmt: skip
    # all or nothing
    missing = client.post(
        "/v1/outputs/labels", json={"outputs": [*places, {"job_id": jobs[0], "index": 9}], "star": True}
    )
    assert missing.status_code == 404
    assert f"{jobs[0]}/9" in missing.json()["detail"]
    assert found(client, star=True) == [PROMPTS[1]]


def test_chosen_outputs_come_as_one_zip_and_are_deleted_for_good(
    api: Api, client: httpx2.Client, jobs: list[str]
) -> None:
    places = [{"job_id": job_id, "index": 0} for job_id in jobs[:2]]
    client.post("/v1/outputs/labels", json={"outputs": places, "star": True}).raise_for_status()
    answer = client.post("/v1/outputs/archive", json={"outputs": places})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert [name[:8] for name in archive.namelist()] == ["1-item-0", "2-item-1"]
        data = archive.read(archive.namelist()[0])
    key = api.job(jobs[0]).outputs[0].key
    assert api.storage.get(key) == data
    assert client.post("/v1/outputs/delete", json={"outputs": places[:1]}).json() == {"deleted": 1}
    assert found(client) == [PROMPTS[3], PROMPTS[2], PROMPTS[1]]
    assert found(client, star=True) == [PROMPTS[1]]
    job = client.get(f"/v1/jobs/{jobs[0]}").json()
    assert (job["state"], job["outputs"]) == ("succeeded", [])
    with api.store.begin() as unit:
        assert key in unit.pending_deletions.take(10) or not api.storage.exists(key)
    assert client.post("/v1/outputs/delete", json={"outputs": places}).status_code == 404  # all or nothing
    assert found(client, q="cube") == [PROMPTS[1]]


def test_an_output_keeps_its_index_when_another_is_deleted(api: Api, client: httpx2.Client, jobs: list[str]) -> None:
    job_id = rendered(api, client, "three", num_outputs=3)
    with Farm(api.url, api.key) as farm:
        assert farm.delete_outputs([f"{job_id}/0"]) == 1
        left = farm.get(job_id).outputs
        assert [one.index for one in left] == [1, 2]
        assert farm.download(left[0])


def test_a_job_is_deleted_only_when_it_has_ended_and_is_of_no_batch(
    api: Api, client: httpx2.Client, jobs: list[str]
) -> None:
    waiting = client.post("/v1/jobs", json={"task": "text-to-image", "model": "starter", "prompt": "x"}).json()["id"]
    refused = client.delete(f"/v1/jobs/{waiting}")
    assert (refused.status_code, "cancel it first" in refused.text) == (409, True)
    batch = client.post("/v1/batches", json={"jobs": [{"task": "text-to-image", "prompt": "x"}]}).json()
    (one,) = client.get(f"/v1/batches/{batch['id']}/jobs").json()["data"]
    hand = Hand(api)
    hand.succeed(hand.begin(one["id"]))
    refused = client.delete(f"/v1/jobs/{one['id']}")
    assert (refused.status_code, batch["id"] in refused.text) == (409, True)
    assert client.delete(f"/v1/jobs/{jobs[0]}").json() == {"deleted": 1}
    assert client.get(f"/v1/jobs/{jobs[0]}").status_code == 404
    assert client.delete(f"/v1/jobs/{jobs[0]}").status_code == 404
    # the outputs of a deleted batch are hidden at once
    client.delete(f"/v1/batches/{batch['id']}").raise_for_status()
    assert found(client) == [PROMPTS[3], PROMPTS[2], PROMPTS[1]]


def test_the_client_and_the_command_line_do_the_same(api: Api, jobs: list[str], tmp_path: Path) -> None:
    with Farm(api.url, api.key) as farm:
        (one,) = farm.outputs(q="red cube")
        (changed,) = farm.label_outputs([one], star=True, add_tags=["hero"])
        assert (changed.star, changed.tags) == (True, ("hero",))
        assert farm.output_labels() == ({"kind": "tag", "name": "hero", "outputs": 1},)

    def cli(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "farm.cli", "outputs", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                "FARM_URL": api.url,
                "FARM_API_KEY": api.key,
                "PATH": "",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert cli("list", "--star").split()[0] == f"{jobs[1]}/0"
    assert [one["prompt"] for one in json.loads(cli("list", "-q", "ball", "--json"))] == [PROMPTS[2], PROMPTS[0]]
    assert "hero, Spring" in cli("label", f"{jobs[1]}/0", "--no-star", "--collect", "Spring").replace("#", "")
    cli("download", str(tmp_path / "home"), "--collection", "Spring")
    (file,) = (tmp_path / "home").iterdir()
    assert file.read_bytes() == api.storage.get(api.job(jobs[1]).outputs[0].key)
    assert "1 outputs deleted" in cli("delete", f"{jobs[1]}/0", "--yes")
    with Farm(api.url, api.key) as farm:
        assert [one.prompt for one in farm.outputs(q="red")] == [PROMPTS[0]]
        assert farm.delete_job(jobs[0]) == 1
        assert not list(farm.outputs(q="red"))


def test_the_search_reads_the_index_and_no_row_of_another_tenant(api: Api, jobs: list[str]) -> None:
    """The index serves the very expression of the query: with no other index of tenants, it is what is read."""
    assert len(jobs) == len(PROMPTS)
    with api.store.begin() as unit:
        unit.session.execute(text("SET LOCAL enable_seqscan = off"))
        unit.session.execute(text("DROP INDEX job_listing, job_finished, job_custom_id, job_retry_of, job_batch"))
        found = Gallery(unit.session)._jobs(api.tenant_id, OutputFilter(q="red"), None)
        statement = found.where(words_match(api.tenant_id, "red"))
        compiled = statement.compile(unit.session.connection(), compile_kwargs={"literal_binds": True})
        plan = "\n".join(row[0] for row in unit.session.execute(text("EXPLAIN " + str(compiled).replace(":", r"\:"))))
        unit.session.rollback()
    assert "Bitmap Index Scan on job_prompt_words" in plan
    (condition,) = [line for line in plan.splitlines() if "Index Cond" in line and "tsvector" in line]
    assert "'red'" in condition
    assert api.tenant_id.removeprefix("ten_")[:8] in condition
