"""Replicate's official client, unmodified, against the farm, with a deliverer at work."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from farm.domain.job import JobFilter
from farm.webhooks.deliverer import Deliverer
from tests.api_server import Api
from tests.compat.environment import run_client, started_client
from tests.integration.receiver import Receiver, receiver
from tests.waiting import wait_until


@contextmanager
def delivering(api: Api) -> Iterator[Receiver]:
    """A deliverer at work, and a receiver to deliver to."""
    deliverer = Deliverer(api.settings, lambda key: api.storage.presign_get(key, api.settings.presign_seconds))
    thread = threading.Thread(target=deliverer.run, name="deliverer")
    with receiver() as made:
        thread.start()
        try:
            yield made
        finally:
            deliverer.stop()
            thread.join(20)


def test_predictions_and_their_webhooks_are_what_replicates_client_expects(api: Api) -> None:
    with (
        delivering(api) as hooks,
        started_client("replicate_client.py", hooks.url(""), FARM_URL=api.url, FARM_KEY=api.key) as client,
    ):
        assert client.stdout is not None
        assert client.stdin is not None
        assert client.stdout.readline().strip() == "sent", client.communicate()
        for path, count in (("/all", 2), ("/ends", 1), ("/starts", 1)):
            wait_until(lambda: len(hooks.at(path)) == count, 20, what=f"{count} webhooks at {path}")  # noqa: B023
        states: dict[str, list[str]] = {}
        for one in sorted(hooks.received, key=lambda one: (one.path, one.at)):
            client.stdin.write(json.dumps({"headers": one.headers, "body": one.body.decode()}) + "\n")
            client.stdin.flush()
            states.setdefault(one.path, []).append(client.stdout.readline().strip())
        _, errors = client.communicate(timeout=60)
        assert client.returncode == 0, errors
    assert {path: sorted(told) for path, told in states.items()} == {
        "/all": ["processing", "succeeded"],
        "/ends": ["succeeded"],
        "/starts": ["processing"],
    }
    with api.store.begin() as unit:
        jobs, _ = unit.jobs.page(api.tenant_id, JobFilter(), None, 200)
    jobs.reverse()
    assert [job.spec.task for job in jobs[:3]] == ["text-to-image", "image-to-image", "inpainting"]
    assert (jobs[0].spec.num_outputs, jobs[1].spec.strength) == (2, 0.5)
    assert (jobs[2].spec.scheduler, jobs[2].spec.num_inference_steps) == ("euler", 3)


def test_other_peoples_verifiers_accept_the_farms_webhooks_and_no_changed_one(api: Api) -> None:
    """Of an endpoint, while its secret is rotated, and of a job's own URL."""
    with delivering(api) as hooks, api.client() as client:
        endpoint = client.post("/v1/webhooks/endpoints", json={"url": hooks.url("/endpoint")}).json()
        rotated = client.post(f"/v1/webhooks/endpoints/{endpoint['id']}/rotate").json()
        job = {"task": "text-to-image", "prompt": "a red ball", "webhook": hooks.url("/own")}
        client.post("/v1/jobs", json=job, headers={"Prefer": "wait=20"})
        wait_until(lambda: len(hooks.received) == 2, 20, what="both webhooks")
        (own,) = client.get("/v1/webhooks/endpoints?one_off=true").json()["data"]
        secret = client.get(f"/v1/webhooks/endpoints/{own['id']}/secret").json()["secret"]
    ((first,), (second,)) = hooks.at("/endpoint"), hooks.at("/own")
    told = [
        json.dumps({"headers": one.headers, "body": one.body.decode(), "secret": key})
        for one, key in ((first, endpoint["secret"]), (first, rotated["secret"]), (second, secret))
    ]
    assert run_client("webhooks.py", given="\n".join(told)).strip() == "3"
