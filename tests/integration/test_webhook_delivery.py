"""Webhooks from the commit of a job's end to a receiver on loopback, with a real database and real deliverers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import text

from farm import __version__, lifecycle
from farm.domain.endpoint import DeliveryState, DisabledReason, Endpoint
from farm.domain.job import Job, JobError, NewJob, Output
from farm.domain.queue import Assignment
from farm.domain.states import EventType, JobState
from farm.settings import Settings
from farm.store.deliveries import Delivery, DeliveryAttempt
from farm.store.unit_of_work import Store
from farm.webhooks import signature
from farm.webhooks.deliverer import Deliverer, DelivererLimits
from farm.webhooks.retry_policy import RetryPolicy
from tests import job_edges
from tests.integration.conftest import spec
from tests.integration.receiver import Receiver, answer, hang, in_turn, receiver, stream
from tests.waiting import wait_until

LIMITS = DelivererLimits(deadline=2.0, body_deadline=0.5, lease=6.0, grace=1.0)
SCHEDULE = RetryPolicy(delays=(0, 0.1, 0.2, 0.2), jitter=0)
WORKER = "host/cpu0"


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def config(database_url: str) -> Settings:
    return Settings(database_url=database_url, webhook_allow=(ip_network("127.0.0.0/8"),), webhook_allow_http=True)


Start = Callable[..., Deliverer]


@pytest.fixture
def start(config: Settings) -> Iterator[Start]:
    """Starts deliverers in threads of this process, and stops them after the test."""
    running: list[tuple[Deliverer, threading.Thread]] = []

    def one(
        *, settings: Settings = config, retry_policy: RetryPolicy = SCHEDULE, limits: DelivererLimits = LIMITS
    ) -> Deliverer:
        made = Deliverer(
            settings, lambda key: f"https://bucket.example/{key}?signed", retry_policy=retry_policy, limits=limits
        )
        thread = threading.Thread(target=made.run)
        thread.start()
        running.append((made, thread))
        return made

    yield one
    for made, _ in running:
        made.stop()
    for _, thread in running:
        thread.join(10)
        assert not thread.is_alive()


Succeed = Callable[..., Job]


@pytest.fixture
def succeed(store: Store, tenant: str) -> Succeed:
    """Takes a job through its whole life in the database."""

    def one(webhook: str | None = None, tenant_id: str = tenant, custom_id: str | None = None) -> Job:
        new = NewJob(spec(), webhook=webhook, custom_id=custom_id, metadata=(("sku", "A-1"),))
        with store.begin() as unit:
            job, _ = lifecycle.submit(unit, tenant_id, new)
            (sent,) = lifecycle.dispatch(unit, [Assignment(job.id, WORKER)], 30)
        with store.begin() as unit:
            job_edges.claim(unit, job.id, sent.epoch, WORKER, 30)
        output = Output(0, f"outputs/{job.id}/1/0.png", "image/png", 1234, "ab" * 32, 1, {"width": 64, "height": 64})
        with store.begin() as unit:
            return job_edges.succeed(unit, job.id, sent.epoch, [output], {"version": 1})

    return one


@pytest.fixture
def endpoint(store: Store, tenant: str) -> Callable[..., Endpoint]:
    def one(url: str, *events: EventType, tenant_id: str = tenant) -> Endpoint:
        with store.begin() as unit:
            return unit.webhooks.create_endpoint(tenant_id, url, signature.new_secret(), events or tuple(END))

    return one


END = (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELED)
Make = Callable[..., Endpoint]


def only_delivery(store: Store, endpoint_id: str) -> Delivery:
    with store.begin() as unit:
        (one,) = unit.deliveries.of_endpoint(endpoint_id)
        return one


def attempts(store: Store, delivery_id: str) -> list[DeliveryAttempt]:
    with store.begin() as unit:
        return unit.deliveries.attempts(delivery_id)


def ended(store: Store, endpoint_id: str) -> Delivery:
    """The endpoint's only delivery, once it has ended."""

    def over() -> Delivery | None:
        with store.begin() as unit:
            found = unit.deliveries.of_endpoint(endpoint_id)
        return found[0] if found and found[0].state is not DeliveryState.PENDING else None

    one = wait_until(over, 15)
    assert one is not None
    return one


def fresh(store: Store, tenant_id: str, endpoint_id: str) -> Endpoint:
    with store.begin() as unit:
        return unit.webhooks.endpoint(tenant_id, endpoint_id)


def count(store: Store, statement: str) -> int:
    with store.begin() as unit:
        return int(unit.session.execute(text(statement)).scalar_one())


def test_an_event_is_delivered_once_and_signed(
    store: Store, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    wants = endpoint(hooks.url())
    start()
    job = succeed(custom_id="chair-17")
    delivery = ended(store, wants.id)
    assert delivery.state is DeliveryState.DELIVERED
    (got,) = hooks.received
    signature.verify(wants.secrets[0], got.headers, got.body)
    assert got.id == delivery.id
    assert got.headers["user-agent"] == f"render-farm/{__version__}"
    assert got.headers["content-type"] == "application/json"
    assert got.event["type"] == "job.succeeded"
    assert got.event["sequence"] == 1
    data = got.event["data"]
    assert (data["id"], data["state"], data["custom_id"]) == (job.id, "succeeded", "chair-17")
    assert data["metadata"] == {"sku": "A-1"}
    assert data["parameters"]["prompt"] == job.spec.prompt
    (output,) = data["outputs"]
    assert output["url"] == f"https://bucket.example/outputs/{job.id}/1/0.png?signed"
    assert (output["sha256"], output["size"], output["seed"]) == ("ab" * 32, 1234, 1)
    (attempt,) = attempts(store, delivery.id)
    assert (attempt.number, attempt.status, attempt.error, attempt.response) == (1, 200, None, "ok")
    assert count(store, "SELECT count(*) FROM event WHERE NOT fanned_out") == 0


def test_a_jobs_own_webhook_is_signed_with_a_secret_of_its_own(
    store: Store, tenant: str, start: Start, hooks: Receiver, succeed: Succeed
) -> None:
    start()
    first, second = succeed(hooks.url("/a")), succeed(hooks.url("/a"))
    wait_until(lambda: len(hooks.received) == 2)
    with store.begin() as unit:
        (made,) = unit.webhooks.endpoints(tenant)
    assert made.one_off
    assert made.url == hooks.url("/a")
    assert {one.event["data"]["id"] for one in hooks.received} == {first.id, second.id}
    assert sorted(one.event["sequence"] for one in hooks.received) == [1, 2]
    for got in hooks.received:
        signature.verify(made.secrets[0], got.headers, got.body)


def test_events_without_a_subscriber_are_no_work_for_a_deliverer(
    store: Store, endpoint: Make, succeed: Succeed
) -> None:
    waiting = "SELECT count(*) FROM event WHERE NOT fanned_out"
    succeed()
    assert count(store, waiting) == 0
    endpoint("https://example.com/hook", EventType.FAILED)
    succeed()
    assert count(store, waiting) == 0
    succeed(webhook="https://example.com/own")
    assert count(store, waiting) == 2  # its start, which its webhook passes over, and its end
    endpoint("https://example.com/hook", EventType.SUCCEEDED)
    succeed()
    assert count(store, waiting) == 3


def test_failed_and_canceled_jobs_are_sent_and_filters_hold(
    store: Store, tenant: str, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    endpoint(hooks.url("/all"))
    endpoint(hooks.url("/canceled"), EventType.CANCELED)
    with store.begin() as unit:
        other = unit.tenants.create("other").id
    endpoint(hooks.url("/other"), tenant_id=other)
    start()
    succeed()
    with store.begin() as unit:
        doomed, _ = lifecycle.submit(unit, tenant, NewJob(spec()))
        (sent,) = lifecycle.dispatch(unit, [Assignment(doomed.id, WORKER)], 30)
        job_edges.claim(unit, doomed.id, sent.epoch, WORKER, 30)
    with store.begin() as unit:
        error = JobError("model_unavailable", "no such weights")
        assert lifecycle.fail(unit, doomed.id, sent.epoch, error, retryable=False) is JobState.FAILED
    with store.begin() as unit:
        unwanted, _ = lifecycle.submit(unit, tenant, NewJob(spec()))
    with store.begin() as unit:
        lifecycle.cancel(unit, tenant, unwanted.id)
    wait_until(lambda: len(hooks.received) == 4)
    kinds = {one.event["type"]: one.event["data"] for one in hooks.at("/all")}
    assert set(kinds) == {"job.succeeded", "job.failed", "job.canceled"}
    assert kinds["job.failed"]["error"] == {"code": "model_unavailable", "message": "no such weights"}
    assert [one.event["type"] for one in hooks.at("/canceled")] == ["job.canceled"]
    assert not hooks.at("/other")


def test_a_failure_is_retried_with_the_same_id_and_body_and_a_new_signature(
    store: Store, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    wants = endpoint(hooks.url())
    hooks.behaviours["/hook"] = in_turn(answer(500, b"broken\0"), answer(200))
    start(retry_policy=replace(SCHEDULE, delays=(0, 1.1, 1)))
    succeed()
    delivery = ended(store, wants.id)
    first, second = hooks.received
    assert first.id == second.id == delivery.id
    assert first.event | {"data": 0} == second.event | {"data": 0}
    assert int(second.headers["webhook-timestamp"]) > int(first.headers["webhook-timestamp"])
    assert second.headers["webhook-signature"] != first.headers["webhook-signature"]
    signature.verify(wants.secrets[0], second.headers, second.body)
    log = attempts(store, delivery.id)
    assert [(one.number, one.status, one.error) for one in log] == [(1, 500, "status"), (2, 200, None)]
    assert log[0].response == "broken"


def test_after_the_last_try_a_delivery_is_dead_and_visible(
    store: Store, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    wants = endpoint(hooks.url())
    hooks.behaviours["/hook"] = answer(500)
    start()
    succeed()
    delivery = ended(store, wants.id)
    assert delivery.state is DeliveryState.DEAD
    assert delivery.attempt_count == len(SCHEDULE.delays) == len(hooks.received) == len(attempts(store, delivery.id))
    assert {one.id for one in hooks.received} == {delivery.id}


def test_410_disables_the_endpoint(
    store: Store, tenant: str, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    wants = endpoint(hooks.url())
    hooks.behaviours["/hook"] = in_turn(answer(410), answer(200))
    start()
    succeed()
    wait_until(lambda: fresh(store, tenant, wants.id).disabled_at)
    delivery = only_delivery(store, wants.id)
    assert delivery.state is DeliveryState.PENDING
    assert [one.error for one in attempts(store, delivery.id)] == ["gone"]
    other = endpoint(hooks.url("/other"))
    succeed()
    ended(store, other.id)
    assert len(hooks.at("/hook")) == 1
    # enabled again, it gets what waited, and nothing that happened while it was disabled
    with store.begin() as unit:
        unit.webhooks.enable(tenant, wants.id)
        unit.events.notify("farm_event")
    assert ended(store, wants.id).state is DeliveryState.DELIVERED
    assert len(hooks.at("/hook")) == 2


def test_an_endpoint_that_failed_for_days_is_disabled(
    store: Store, tenant: str, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    wants = endpoint(hooks.url())
    endpoint(hooks.url("/others"), EventType.ENDPOINT_DISABLED)
    hooks.behaviours["/hook"] = answer(500)
    start(retry_policy=replace(SCHEDULE, give_up_after=0.4, delays=(0,) + (0.25,) * 20, break_after=50))
    succeed()
    wait_until(lambda: fresh(store, tenant, wants.id).disabled_at)
    assert fresh(store, tenant, wants.id).disabled_reason is DisabledReason.FAILING
    tries = len(hooks.at("/hook"))
    assert 2 <= tries <= 5
    (told,) = wait_until(lambda: hooks.at("/others"))
    assert told.event["type"] == "endpoint.disabled"
    assert (told.event["data"]["endpoint"]["id"], told.event["data"]["endpoint"]["reason"]) == (wants.id, "failing")
    assert len(attempts(store, only_delivery(store, wants.id).id)) == tries


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_a_failure_and_never_followed(
    store: Store, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed, status: int
) -> None:
    wants = endpoint(hooks.url())
    hooks.behaviours["/hook"] = answer(status, Location=hooks.url("/elsewhere"))
    start(retry_policy=replace(SCHEDULE, delays=(0,)))
    succeed()
    delivery = ended(store, wants.id)
    assert delivery.state is DeliveryState.DEAD
    assert [(one.status, one.error) for one in attempts(store, delivery.id)] == [(status, "redirect")]
    assert not hooks.at("/elsewhere")


@pytest.mark.parametrize(
    ("status", "part", "pause"), [(500, b"x" * 4096, 0.0), (500, b"x", 0.05), (200, b"x", 0.05)], ids=str
)
def test_an_endless_body_ends(
    store: Store,
    start: Start,
    hooks: Receiver,
    endpoint: Make,
    succeed: Succeed,
    status: int,
    part: bytes,
    pause: float,
) -> None:
    wants = endpoint(hooks.url())
    hooks.behaviours["/hook"] = stream(status, part, pause)
    start(retry_policy=replace(SCHEDULE, delays=(0,)))
    succeed()
    delivery = ended(store, wants.id)
    assert delivery.state is (DeliveryState.DELIVERED if status == 200 else DeliveryState.DEAD)
    (attempt,) = attempts(store, delivery.id)
    assert attempt.status == status
    assert attempt.seconds < LIMITS.deadline + 0.5
    assert 0 < len(attempt.response) <= 2048
    assert set(attempt.response) == {"x"}


def test_headers_that_drip_end_by_the_deadline(
    store: Store, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    def drip(handler: object, _: int) -> None:
        handler.close_connection = True  # type: ignore[attr-defined]
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")  # type: ignore[attr-defined]
            for number in range(1_000):
                handler.wfile.write(b"X-%d: y\r\n" % number)  # type: ignore[attr-defined]
                time.sleep(0.05)
        except OSError:
            return

    wants = endpoint(hooks.url())
    hooks.behaviours["/hook"] = drip
    start(retry_policy=replace(SCHEDULE, delays=(0,)))
    succeed()
    (attempt,) = attempts(store, ended(store, wants.id).id)
    assert (attempt.status, attempt.error) == (None, "timeout")
    assert attempt.seconds < LIMITS.deadline + 0.5


def test_retry_after_puts_the_whole_endpoint_off(
    store: Store, tenant: str, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    wants = endpoint(hooks.url())
    hooks.behaviours["/hook"] = in_turn(answer(429, Retry_After="2"), answer(200))
    start()
    succeed()
    wait_until(lambda: fresh(store, tenant, wants.id).paused_until)
    succeed()
    wait_until(lambda: len(hooks.received) == 3)
    first, second, third = hooks.received
    assert second.at - first.at > 1.9
    assert third.at - first.at > 1.9
    assert wait_until(lambda: fresh(store, tenant, wants.id).consecutive_failures == 0)


def test_a_private_address_is_refused_and_recorded(
    store: Store, start: Start, config: Settings, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    wants = endpoint("http://127.0.0.1/hook")
    start(settings=config.model_copy(update={"webhook_allow": ()}), retry_policy=replace(SCHEDULE, delays=(0, 0.1)))
    succeed()
    delivery = ended(store, wants.id)
    assert delivery.state is DeliveryState.DEAD
    assert [(one.status, one.error) for one in attempts(store, delivery.id)] == [(None, "refused")] * 2
    assert not hooks.received


def test_dead_endpoints_cost_the_others_nothing(
    store: Store, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    """Six endpoints hang, with a backlog that would fill all places; a healthy one gets each event nevertheless."""
    release = threading.Event()
    limits = replace(LIMITS, fast_concurrency=16, slow_concurrency=16, deadline=30.0, lease=60.0)
    for number in range(6):
        hooks.behaviours[f"/dead{number}"] = hang(release)
        endpoint(hooks.url(f"/dead{number}"))
    for _ in range(20):
        succeed()
    start(limits=limits)
    wait_until(lambda: len({one.path for one in hooks.received}) == 6, 10)
    with store.begin() as unit:
        other = unit.tenants.create("other").id
    endpoint(hooks.url("/healthy"), tenant_id=other)
    try:
        for _ in range(5):
            before = time.monotonic()
            job = succeed(tenant_id=other)
            got = wait_until(partial(hooks.about, "/healthy", job.id), 10)
            assert got[0].at - before < 2.5
        for number in range(6):
            assert len(hooks.at(f"/dead{number}")) <= limits.per_endpoint
    finally:
        release.set()


def test_a_failing_endpoint_gets_single_probes(
    store: Store, tenant: str, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    well = threading.Event()

    def act(handler: object, before: int) -> None:
        answer(200 if well.is_set() else 500)(handler, before)  # type: ignore[arg-type]

    wants = endpoint(hooks.url())
    hooks.behaviours["/hook"] = act
    for _ in range(40):
        succeed()
    start(retry_policy=replace(SCHEDULE, delays=(0, 0.1) + (0.2,) * 18, first_pause=0.5, longest_pause=0.5))
    # the first 5 failures, what was under way with them, and then one at a time
    wait_until(lambda: fresh(store, tenant, wants.id).consecutive_failures >= 5 + 4, 20)
    times = [one.at for one in hooks.received]
    assert len(times) < 25
    probes = times[-4:]
    assert all(later - earlier > 0.4 for earlier, later in pairwise(probes))
    before = len(times)
    well.set()
    wait_until(lambda: count(store, "SELECT count(*) FROM delivery WHERE state = 'delivered'") == 40, 20)
    assert len(hooks.received) - before <= 42  # what was under way when it got well, and each once
    assert fresh(store, tenant, wants.id).failing_since is None


def test_two_deliverers_share_the_work_without_doubling_it(
    store: Store, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    wants = [endpoint(hooks.url(f"/{number}")) for number in range(5)]
    start()
    start()
    for _ in range(30):
        succeed()
    wait_until(lambda: count(store, "SELECT count(*) FROM delivery WHERE state = 'delivered'") == 150, 30)
    assert len(hooks.received) == 150
    assert len({one.id for one in hooks.received}) == 150
    for number in range(5):
        assert sorted(one.event["sequence"] for one in hooks.at(f"/{number}")) == list(range(1, 31))
    assert fresh_sequence(store, wants[0]) == 30


def fresh_sequence(store: Store, one: Endpoint) -> int:
    return fresh(store, one.tenant_id, one.id).sequence


def test_a_stopped_deliverer_notes_what_it_cut_short(
    store: Store, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    release = threading.Event()
    wants = endpoint(hooks.url())
    hooks.behaviours["/hook"] = in_turn(hang(release), answer(200))
    first = start(limits=replace(LIMITS, deadline=60, lease=120, grace=0.2))
    succeed()
    wait_until(lambda: hooks.received)
    first.stop()
    wait_until(lambda: len(attempts(store, only_delivery(store, wants.id).id)) == 1)
    start()
    delivery = ended(store, wants.id)  # at once, not after the lease of two minutes
    release.set()
    assert [one.error for one in attempts(store, delivery.id)] == ["interrupted", None]
    assert len({one.id for one in hooks.received}) == 1


SCRIPT = textwrap.dedent(
    """
    import signal
    from farm.settings import settings
    from farm.webhooks.deliverer import Deliverer, DelivererLimits
    one = Deliverer(settings(), lambda key: "https://bucket.example/" + key, limits=DelivererLimits(lease=3.0))
    signal.signal(signal.SIGTERM, lambda *_: one.stop())
    one.run()
    """
)


def process(config: Settings) -> subprocess.Popen[bytes]:
    assert config.database_url is not None
    env = os.environ | {
        "FARM_DATABASE_URL": config.database_url.get_secret_value(),
        "FARM_WEBHOOK_ALLOW": "127.0.0.0/8",
        "FARM_WEBHOOK_ALLOW_HTTP": "true",
    }
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, cwd=Path(__file__).parents[2])


def test_kill_9_in_the_middle_of_a_delivery_loses_nothing(
    store: Store, config: Settings, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    release = threading.Event()
    wants = endpoint(hooks.url())
    hooks.behaviours["/hook"] = in_turn(hang(release), answer(200))
    child = process(config)
    try:
        succeed()
        wait_until(lambda: hooks.received, 20)
        child.kill()
        child.wait(10)
        start()
        delivery = ended(store, wants.id)
    finally:
        release.set()
        child.kill()
        child.wait(10)
    assert delivery.state is DeliveryState.DELIVERED
    assert [one.id for one in hooks.received] == [delivery.id] * 2
    assert [one.error for one in attempts(store, delivery.id)] == ["lost", None]


def test_sigterm_ends_the_service_within_seconds(
    store: Store, config: Settings, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    wants = endpoint(hooks.url())
    child = process(config)
    try:
        succeed()
        ended(store, wants.id)
        before = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        assert time.monotonic() - before < 5
    finally:
        child.kill()
        child.wait(10)


def test_a_database_that_goes_away_is_waited_for(
    store: Store, config: Settings, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    wants = endpoint(hooks.url())
    start()
    with store.begin() as unit:
        unit.session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    store.engine.dispose()
    succeed()
    assert ended(store, wants.id).state is DeliveryState.DELIVERED


def test_a_job_that_cannot_be_read_costs_only_itself(
    store: Store, start: Start, hooks: Receiver, endpoint: Make, succeed: Succeed
) -> None:
    endpoint(hooks.url())
    bad, good = succeed(), succeed()
    with store.begin() as unit:
        unit.session.execute(
            text("UPDATE job SET spec = '{}' WHERE id = CAST(:id AS uuid)"), {"id": bad.id.removeprefix("job_")}
        )
    start()
    wait_until(lambda: hooks.received)
    wait_until(lambda: count(store, "SELECT count(*) FROM delivery WHERE state = 'dead'") == 1)
    assert [one.event["data"]["id"] for one in hooks.received] == [good.id]
    assert count(store, "SELECT count(*) FROM delivery_attempt WHERE error = 'internal'") == len(SCHEDULE.delays)
