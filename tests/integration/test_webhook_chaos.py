"""Deliverers killed again and again while receivers fail, hang and reset: nothing is lost, and ids stay.

``WEBHOOK_CHAOS=long`` kills 20 of them during 5,000 events, and prints how many deliveries came twice (some minutes).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from sqlalchemy import text

from farm.domain.job import NewJob
from farm.domain.states import EventType
from farm.store.unit_of_work import Store
from farm.webhooks import signature
from tests.integration.conftest import spec
from tests.integration.receiver import Receiver, answer, receiver, reset
from tests.waiting import wait_until

LONG = os.environ.get("WEBHOOK_CHAOS") == "long"
EVENTS = 5_000 if LONG else 200
ENDPOINTS = 3
KILLS = 20 if LONG else 6

SCRIPT = textwrap.dedent(
    """
    import signal
    from farm.settings import settings
    from farm.webhooks.deliverer import Deliverer, DelivererLimits
    from farm.webhooks.retry_policy import RetryPolicy
    retry_policy = RetryPolicy(delays=(0,) + (0.3,) * 500, first_pause=0.2, longest_pause=0.5)
    limits = DelivererLimits(deadline=1.0, body_deadline=0.3, lease=2.5)
    one = Deliverer(settings(), lambda key: "https://bucket.example/" + key, retry_policy=retry_policy, limits=limits)
    signal.signal(signal.SIGTERM, lambda *_: one.stop())
    one.run()
    """
)


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.mark.timeout(1800 if LONG else 180)
def test_killed_deliverers_lose_nothing(store: Store, tenant: str, database_url: str, hooks: Receiver) -> None:
    chance = random.Random(7)
    acknowledged: Counter[tuple[str, str]] = Counter()
    lock = threading.Lock()

    def moody(handler: BaseHTTPRequestHandler, _: int) -> None:
        mood = chance.random()
        if mood < 0.1:
            answer(500)(handler, 0)
        elif mood < 0.15:
            handler.close_connection = True  # no answer at all
        elif mood < 0.18:
            reset(handler, 0)
        elif mood < 0.2:
            time.sleep(1.5)  # longer than the deadline
            handler.close_connection = True
        else:
            with lock:
                acknowledged[handler.path, handler.headers["webhook-id"]] += 1
            answer(200)(handler, 0)

    with store.begin() as unit:
        for number in range(ENDPOINTS):
            hooks.behaviours[f"/{number}"] = moody
            unit.webhooks.create_endpoint(tenant, hooks.url(f"/{number}"), signature.new_secret())
    env = os.environ | {
        "FARM_DATABASE_URL": database_url,
        "FARM_WEBHOOK_ALLOW": "127.0.0.0/8",
        "FARM_WEBHOOK_ALLOW_HTTP": "true",
    }

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, cwd=Path(__file__).parents[2])

    jobs: list[str] = []
    child = begin()
    try:
        for number in range(KILLS):
            with store.begin() as unit:
                made = unit.jobs.insert(tenant, [NewJob(spec())] * (EVENTS // KILLS + 1))
                unit.session.execute(text("UPDATE job SET state = 'failed' WHERE state = 'queued'"))
                unit.events.record_many([(tenant, job_id, 1, EventType.FAILED, {}) for job_id in made])
            jobs += made
            enough = len(hooks.received) + chance.randrange(5, ENDPOINTS * len(made) // 3)
            wait_until(lambda: len(hooks.received) > enough, 60)  # noqa: B023
            child.kill()
            child.wait(10)
            child = begin()
            assert number < KILLS

        def left() -> int:
            with store.begin() as unit:
                return int(
                    unit.session.execute(
                        text(
                            "SELECT (SELECT count(*) FROM event WHERE NOT fanned_out)"
                            " + (SELECT count(*) FROM delivery WHERE state <> 'delivered')"
                        )
                    ).scalar_one()
                )

        wait_until(lambda: left() == 0, 900 if LONG else 90, every=0.2, what="all is delivered")
        child.terminate()
        assert child.wait(15) == 0
    finally:
        child.kill()
        child.wait(10)

    ids_of: dict[tuple[str, str], set[str]] = {}
    for got in hooks.received:
        ids_of.setdefault((got.path, got.event["data"]["id"]), set()).add(got.id)
    assert set(ids_of) == {(f"/{number}", job) for number in range(ENDPOINTS) for job in jobs}
    assert all(len(found) == 1 for found in ids_of.values())
    assert len(acknowledged) == ENDPOINTS * len(jobs)
    twice = sum(acknowledged.values()) - len(acknowledged)
    print(f"{KILLS} kills, {len(acknowledged)} deliveries, {len(hooks.received)} POSTs, {twice} acknowledged again")
    # a deliverer that dies has at most its places for these endpoints under way, and what it has not recorded yet
    assert twice < KILLS * 200
    with store.begin() as unit:
        logged = unit.session.execute(text("SELECT count(*) FROM delivery_attempt")).scalar_one()
        succeeded = unit.session.execute(text("SELECT count(*) FROM delivery_attempt WHERE status = 200")).scalar_one()
        lost = unit.session.execute(text("SELECT count(*) FROM delivery_attempt WHERE error = 'lost'")).scalar_one()
    # each try that reached the receiver is in the log; a lost one may not have reached it
    assert len(hooks.received) <= logged
    assert len(hooks.received) >= logged - lost
    assert succeeded == ENDPOINTS * len(jobs)
