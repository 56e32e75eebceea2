"""Who changed what is recorded by one place for the API and the dashboard, and shown to operators alone."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from sqlalchemy import text

from farm import lifecycle
from farm.client import Farm
from farm.settings import Settings
from farm.store.tenants import Scope
from tests.api_server import Api, running

from .conftest import worker_info


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


def changes(api: Api, key: str | None = None, q: str | None = None) -> list[tuple[str, str, str]]:
    with Farm(api.url, api.key) as farm:
        return [(one["key_name"], one["action"], one["target"]) for one in farm.audit(key=key, q=q)]


def test_a_change_is_recorded_with_its_key_and_a_look_or_a_refusal_is_not(api: Api) -> None:
    with api.client() as client:
        client.get("/v1/pauses").raise_for_status()
        client.put("/v1/pauses/models/starter").raise_for_status()
        assert client.put("/v1/pauses/models/unknown").status_code == 404
        job = client.post("/v1/jobs", json={"task": "text-to-image", "prompt": "x"}).raise_for_status().json()["id"]
        client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
        made = client.post("/v1/keys", json={"name": "night", "scopes": ["read"]}).raise_for_status().json()
    assert changes(api) == [
        ("all", "POST /v1/keys", ""),
        ("all", "POST /v1/jobs/{job_id}/cancel", job),
        ("all", "PUT /v1/pauses/models/{model_id}", "starter"),
    ]
    with Farm(api.url, api.key) as farm:
        (entry, *_) = farm.audit(limit=1)
        assert entry["request_id"].startswith("req_")
        assert made["id"] not in str(list(farm.audit()))
    assert changes(api, q="pauses") == [("all", "PUT /v1/pauses/models/{model_id}", "starter")]
    assert changes(api, q="%") == changes(api, key="nobody") == []
    with api.client(api.new_key(Scope.READ, Scope.SUBMIT)) as tenant:
        assert tenant.get("/v1/audit").status_code == 403


def test_the_dashboard_records_what_its_forms_name_and_no_secret(api: Api) -> None:
    with api.store.begin() as unit:
        lifecycle.join(unit, worker_info("host/cpu0"))
    own = {"Sec-Fetch-Site": "same-origin"}
    with httpx2.Client(base_url=api.url, headers=own, trust_env=False, follow_redirects=True) as browser:
        browser.post("/farm/login", data={"api_key": api.key}).raise_for_status()
        browser.post("/farm/pause").raise_for_status()
        browser.post("/farm/workers/drain", data={"name": "host/cpu0"}).raise_for_status()
        browser.post("/farm/act", data={"action": "cancel", "all": "1"}).raise_for_status()
        browser.post("/farm/act", data={"action": "cancel", "all": "1", "sure": "1"}).raise_for_status()
        page = browser.get("/farm/audit?q=drain").raise_for_status().text
    assert changes(api) == [
        ("all", "POST /farm/act", "action=cancel"),
        ("all", "POST /farm/workers/drain", "name=host/cpu0"),
        ("all", "POST /farm/pause", ""),
    ]
    assert api.key not in page
    assert "name=host/cpu0" in page
    assert "POST /farm/pause" not in page


def test_pages_go_on_and_old_entries_go_away(api: Api) -> None:
    with api.client() as client:
        for _ in range(3):
            client.put("/v1/pauses/farm").raise_for_status()
            client.delete("/v1/pauses/farm").raise_for_status()
        seen: list[str] = []
        cursor: str | None = None
        while True:
            body = client.get("/v1/audit", params={"limit": 4} | ({"cursor": cursor} if cursor else {})).json()
            seen += [one["action"] for one in body["data"]]
            cursor = body["next"]
            if cursor is None:
                break
        assert seen == ["DELETE /v1/pauses/farm", "PUT /v1/pauses/farm"] * 3
    with api.store.begin() as unit:
        unit.session.execute(text("UPDATE audit SET at = now() - interval '401 days' WHERE action LIKE 'PUT%'"))
    with api.store.begin() as unit:
        lifecycle.delete_expired(unit)
    assert {action for _, action, _ in changes(api)} == {"DELETE /v1/pauses/farm"}
