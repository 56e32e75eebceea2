"""Celery as the farm uses it: a way to wake one worker, never the place where a job lives.

A message says ``{job, epoch}`` and goes to the queue of ONE worker. It is acknowledged when it arrives: a lost one is
offered again when its dispatch lease runs out, a doubled one finds its epoch claimed. So the result backend, acks_late,
the visibility timeout, priorities and ETA are not used. The task is sent by NAME, so nothing here imports the data
plane.
"""

from __future__ import annotations

import json
import os
import re
import time
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from celery import Celery
from celery.events.event import get_exchange
from celery.utils.nodenames import anon_nodename
from celery.utils.time import utcoffset
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from farm.domain.queue import DispatchedJob
from farm.errors import BrokerUnavailable
from farm.redis_server import RedisServer
from farm.server_errors import broker_unavailable
from farm.settings import Settings

RENDER: Final = "farm.render"  #: the name of the one Celery task
MESSAGE_VERSION: Final = 1  #: a worker rejects messages of a version it does not know

#: The nameless exchange routes by queue name alone: it keeps no binding in Redis that a wipe could lose.
DIRECT: Final = Exchange("", type="direct")


def queue_name(worker: str) -> str:
    """The queue that this worker alone consumes: the key of its list in Redis."""
    return f"worker.{worker}"


def queue_of(worker: str) -> Queue:
    """The same as Celery's workers take it."""
    name = queue_name(worker)
    return Queue(name, exchange=DIRECT, routing_key=name, durable=True)


def make_app(settings: Settings) -> Celery:
    """A Celery app with the farm's settings. Raises `SetupError` without ``FARM_REDIS_URL``."""
    server = RedisServer.of(settings)
    app = Celery("farm", broker=server.broker_url, set_as_current=False)
    if server.tls:
        app.conf.broker_use_ssl = dict(server.tls)
    app.farm_redis = server
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,
        task_create_missing_queues=False,
        worker_prefetch_multiplier=1,
        # what Flower shows
        worker_send_task_events=True,
        task_send_sent_event=True,
        # lose a dead connection in seconds instead of in the kernel's hours
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=5,
        # a worker waits for its broker without end, also for a replica to be promoted: its models stay loaded
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_transport_options={
            **server.broker_options,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "retry_on_timeout": True,
            # a lost message is dispatched again, so nothing is kept of one in Redis: that would cost the consumer
            # two round trips for each message
            "ack_emulation": False,
            # report a broker that does not answer within a second, not after six: each caller handles that error
            "max_retries": 1,
            "interval_start": 0.1,
            "interval_step": 0.1,
            "interval_max": 0.3,
        },
        # messages are kept out of Redis by the dispatcher's window, so nothing here waits for long
        worker_hijack_root_logger=False,
        enable_utc=True,
    )
    return app


def send(app: Celery, jobs: Sequence[DispatchedJob]) -> None:
    """Send a message for each assignment, in one round trip. Raises `BrokerUnavailable`; a part may have been sent.

    The message's id holds the job's, so that Celery's own tools show it.
    """
    try:
        with app.producer_or_acquire() as producer, producer.channel.conn_or_acquire() as client:
            lists: dict[str, list[str]] = {one.worker: [] for one in jobs}
            for one, message in zip(jobs, _messages(app, producer.channel, jobs), strict=True):
                lists[one.worker].append(message)
            going = client.pipeline(transaction=False)
            for worker, messages in lists.items():
                going.lpush(queue_name(worker), *messages)
            going.execute()
    except (OperationalError, RedisError, OSError) as error:
        raise _unavailable(app, error) from error


def publish_sent_events(app: Celery, jobs: Sequence[DispatchedJob]) -> None:
    """Publish task-sent events to Celery's monitors, in one message of many parts. Raises `BrokerUnavailable`."""
    name = anon_nodename()
    part = _Template(
        {
            "type": "task-sent",
            "hostname": name,
            "utcoffset": utcoffset(),
            "pid": os.getpid(),
            "clock": app.clock.forward(),
            "timestamp": time.time(),
            "parent_id": None,
            "name": RENDER,
            "args": "()",
            "retries": 0,
            "eta": None,
            "expires": None,
            "exchange": DIRECT.name,
            "uuid": "<id>",
            "root_id": "<id>",
            "kwargs": "<shown>",
            "queue": "<queue>",
            "routing_key": "<queue>",
        }
    )
    try:
        with app.producer_or_acquire() as producer:
            exchange = get_exchange(producer.connection)
            producer.publish(
                f"[{','.join(part.render(_fields(jobs)))}]",
                exchange=exchange.name,
                routing_key="task.multi",
                declare=[exchange],
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=1,
                headers={"hostname": name},
                retry=False,
            )
    except (OperationalError, RedisError, OSError) as error:
        raise _unavailable(app, error) from error


class _Fields(NamedTuple):
    """What differs from message to message, as it stands in JSON."""

    id: str  #: `message_id`, and the tag too: of no other message, which is all that a tag must be
    shown: str  #: the task's arguments, as Celery's monitors show them
    queue: str
    body: str = ""  #: the task's arguments, as its worker takes them


class _Template:
    """A value's JSON with places, wherever ``<name>`` of one of `_Fields` stands.

    Celery builds each message anew, encodes it twice and waits for Redis each time: a millisecond and more, a thousand
    times in a round. Here Celery builds one, and the others are its text with their own fields in their places.
    """

    def __init__(self, value: Any) -> None:
        text, *rest = re.split(f"<({'|'.join(_Fields._fields)})>", json.dumps(value).replace("%", "%%"))
        self._text = "%s".join([text, *rest[1::2]])
        self._pick: Callable[[_Fields], tuple[str, ...]] = itemgetter(*map(_Fields._fields.index, rest[::2]))

    def render(self, fields: Iterable[_Fields]) -> list[str]:
        """The JSON of each."""
        text, pick = self._text, self._pick
        return [text % pick(one) for one in fields]


_SAMPLE: Final = DispatchedJob("<job>", 7777, "")  #: the template from which the messages of other jobs are made


def _messages(app: Celery, channel: Any, jobs: Sequence[DispatchedJob]) -> list[str]:
    """Celery's messages, as it would put them into the lists of the workers."""
    headers, properties, body, _ = app.amqp.as_task_v2("", RENDER, kwargs=message_arguments(_SAMPLE))
    headers |= {"id": "<id>", "root_id": "<id>", "kwargsrepr": "<shown>"}
    message = channel.prepare_message("<body>", None, "application/json", "utf-8", headers, properties)
    message["properties"] |= {
        "correlation_id": "<id>",
        "delivery_mode": 2,
        "delivery_tag": "<id>",
        "delivery_info": {"exchange": DIRECT.name, "routing_key": "<queue>"},
        "body_encoding": "base64",
    }
    return _Template(message).render(_fields(jobs, json.dumps(body)))


def _fields(jobs: Iterable[DispatchedJob], body: str | None = None) -> Iterator[_Fields]:
    """The fields of each, with the bodies only where that of the sample is given."""
    shown = _parameterized(repr(message_arguments(_SAMPLE)))
    body = None if body is None else _parameterized(body)
    queues: dict[str, str] = {}
    for job_id, epoch, worker in jobs:
        queue = queues.get(worker) or queues.setdefault(worker, json.dumps(queue_name(worker))[1:-1])
        written = "" if body is None else b2a_base64((body % (job_id, epoch)).encode(), newline=False).decode()
        yield _Fields(message_id(job_id, epoch), shown % (job_id, epoch), queue, written)


def _parameterized(sample: str) -> str:
    """A text about the sample, with places for another one's job and epoch."""
    return sample.replace("%", "%%").replace(_SAMPLE.job_id, "%s").replace(str(_SAMPLE.epoch), "%d")


def message_arguments(one: DispatchedJob) -> dict[str, Any]:
    """What a message says: the keyword arguments of the task."""
    return {"job": one.job_id, "epoch": one.epoch, "version": MESSAGE_VERSION}


def message_id(job_id: str, epoch: int) -> str:
    """The Celery id of an assignment's message."""
    return f"{job_id}.{epoch}"


def check(app: Celery) -> None:
    """Raise `BrokerUnavailable` unless the broker answers, `SetupError` if it is a Redis Cluster."""
    server_of(app).require_usable()


def server_of(app: Celery) -> RedisServer:
    """The server behind an app of `make_app`."""
    server: RedisServer = app.farm_redis
    return server


def _unavailable(app: Celery, error: BaseException) -> BrokerUnavailable:
    return broker_unavailable(error, server_of(app).place)


#: A command for each list would take the client longer than the lists of a thousand workers take the server.
_LENGTHS: Final = """
    local found = {}
    for place, name in ipairs(KEYS) do found[place] = redis.call('LLEN', name) end
    return found
"""


def queue_lengths(app: Celery, workers: Sequence[str]) -> dict[str, int]:
    """How many messages wait for each worker, by one command.

    Raises `BrokerUnavailable`.
    """
    try:
        with app.producer_or_acquire() as producer, producer.channel.conn_or_acquire() as client:
            lengths = client.eval(_LENGTHS, len(workers), *map(queue_name, workers))
            return dict(zip(workers, lengths, strict=True))
    except (OperationalError, RedisError, OSError) as error:
        raise _unavailable(app, error) from error


def purge(app: Celery, worker: str) -> int:
    """Delete the messages that wait for a worker: those of an ended process, whose jobs were already requeued."""
    try:
        with app.connection_for_write() as connection:
            bound: Any = queue_of(worker)(connection.default_channel)
            return int(bound.purge() or 0)
    except (OperationalError, RedisError, OSError) as error:
        raise _unavailable(app, error) from error
