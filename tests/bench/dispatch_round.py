"""A round of a thousand assignments: the rows' transaction and the messages, beside the least that either could take.

``python -m tests.bench.dispatch_round [--rounds N]`` starts servers of its own in a temporary directory. 250 workers
have room for four jobs each and 20 tenants have jobs waiting, so one round of the dispatcher assigns 1,000. By
turns with each round, two things that promise nothing: the same 1,000 messages are sent by Celery's own ``send_task``
in a loop, and the bare statements dispatch the oldest 50 jobs of each tenant, without a policy, a check or a
message.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from farm import lifecycle
from farm.dispatch import broker
from farm.dispatch.dispatcher import Dispatcher
from farm.domain.job import NewJob
from farm.domain.queue import DispatchedJob
from farm.domain.states import Priority
from farm.settings import Settings
from tests.bench.webhooks import Farm, farm_servers
from tests.integration.conftest import spec, worker_info

OUT = Path("bench-out")
WORKERS = 250
ROOM = 4
TENANTS = 20
ASSIGNMENTS = WORKERS * ROOM


def lay(farm: Farm, waiting: int) -> None:
    """Workers with room, and tenants with jobs that wait."""
    with farm.store.begin() as unit:
        for number in range(WORKERS):
            lifecycle.join(unit, worker_info(f"host{number}/cpu0", slots=2, prefetch=ROOM - 2))
    for number in range(TENANTS):
        with farm.store.begin() as unit:
            tenant = unit.tenants.create(f"tenant {number}").id
            unit.jobs.insert(tenant, [NewJob(spec(seed=seed)) for seed in range(waiting // TENANTS)])


def free(farm: Farm, client: redis.Redis) -> None:
    """All workers have room again, as if they had done what they were given."""
    with farm.store.begin() as unit:
        cursor = unit.session.connection().connection.cursor()
        cursor.execute("UPDATE job SET state = 'succeeded', finished_at = now() WHERE state = 'dispatched'")
    client.flushdb()


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1e3


def bare(farm: Farm) -> None:
    """The oldest jobs of each tenant, found by an index, and one UPDATE by id: what the rows alone take."""
    oldest = """
        SELECT id FROM job WHERE state = 'queued' AND tenant_id = %s AND priority = %s AND model = %s
        ORDER BY queued_at, id LIMIT %s
    """
    values = (Priority.NORMAL.rank, spec().model, ASSIGNMENTS // TENANTS)
    with farm.store.begin() as unit:
        cursor = unit.session.connection().connection.cursor()
        chosen = []
        for tenant in cursor.execute("SELECT id FROM tenant").fetchall():
            chosen += [row[0] for row in cursor.execute(oldest, (tenant[0], *values))]
        taken = cursor.execute(
            """
            UPDATE job SET state = 'dispatched', epoch = epoch + 1, worker = 'nobody', dispatched_at = now(),
                lease_until = now() + interval '1 minute'
            WHERE id = ANY(%s) RETURNING id, epoch
            """,
            (chosen,),
        ).fetchall()
        assert len(taken) == ASSIGNMENTS, len(taken)


def one_by_one(dispatcher: Dispatcher, sent: list[DispatchedJob]) -> None:
    """What one would write first."""
    app = dispatcher._app
    for one in sent:
        app.send_task(
            broker.RENDER,
            kwargs=broker.message_arguments(one),
            task_id=broker.message_id(one.job_id, one.epoch),
            queue=broker.queue_of(one.worker),
        )


def measure(rounds: int) -> dict[str, Any]:
    """Milliseconds for `ASSIGNMENTS` assignments."""
    whole, sending, celery, rows = [], [], [], []
    with tempfile.TemporaryDirectory() as directory, farm_servers(Path(directory) / "data") as (farm, redis_url):
        settings = Settings(database_url=farm.database_url, redis_url=redis_url)
        with redis.Redis.from_url(redis_url) as client:
            lay(farm, waiting=2 * ASSIGNMENTS * (rounds + 2))
            dispatcher = Dispatcher(settings)
            parts: list[float] = []
            real = broker.send
            sent: list[DispatchedJob] = []

            def send(app: Any, assignments: list[DispatchedJob]) -> None:
                sent[:] = assignments
                parts.append(timed(lambda: real(app, assignments)))

            broker.send = send  # type: ignore[assignment]
            for number in range(rounds + 1):
                took = timed(dispatcher.round)
                assert len(sent) == ASSIGNMENTS, len(sent)
                waiting = sum(client.llen(name) for name in client.scan_iter("worker.*", count=1_000))
                assert waiting == ASSIGNMENTS, waiting
                client.flushdb()
                alone = timed(lambda: one_by_one(dispatcher, sent))
                free(farm, client)
                alone_rows = timed(lambda: bare(farm))
                free(farm, client)
                if number:  # the first one connects and prepares
                    whole.append(took)
                    sending.append(parts[-1])
                    celery.append(alone)
                    rows.append(alone_rows)
            broker.send = real
    p50 = statistics.median
    return {
        "rounds": rounds,
        "assignments_per_round": ASSIGNMENTS,
        "round_p50_ms": p50(whole),
        "of_it_sending_p50_ms": p50(sending),
        "celery_send_task_p50_ms": p50(celery),
        "round_over_celery_send_task": p50(whole) / p50(celery),
        "bare_statements_p50_ms": p50(rows),
        "round_over_bare_statements": p50(whole) / p50(rows),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    found = measure(parser.parse_args().rounds)
    OUT.mkdir(exist_ok=True)
    (OUT / "dispatch_round.json").write_text(json.dumps(found, indent=2) + "\n")
    for name, value in found.items():
        print(f"{name:46} {value:12,.3f}")


if __name__ == "__main__":
    main()
