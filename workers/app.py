"""The worker as a Celery app: ``celery -A workers.app worker``, or ``farm worker``, which runs the same.

Celery's part is small: it brings a message to this worker's own queue and runs `render_message` in a thread of its
pool. Everything that a job needs is in `workers.job_runner`; the process's life is in `workers.process`. Importing this
module touches neither torch nor a device, so that ``celery inspect`` and Flower can import it too.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import structlog
from celery import signals
from celery.utils.nodenames import default_nodename

from farm import tracing
from farm.dispatch import broker
from farm.errors import SetupError
from farm.log import configure
from farm.settings import settings
from workers import failpoints
from workers.job_runner import render
from workers.process import Shift

log = structlog.stdlib.get_logger()

try:
    app = broker.make_app(settings())
except SetupError as mistake:  # a person runs this module through Celery's program: one sentence, no trace
    raise SystemExit(f"farm worker: {mistake}") from mistake
# Before Celery reads its command line: the default pool there is the configured one. A fork would not survive CUDA.
app.conf.worker_pool = "threads"
app.conf.worker_consumer = "workers.consumer:Consumer"

_POOL: Final = "celery.concurrency.thread"
_shift: Shift | None = None


@app.task(name=broker.RENDER)  # type: ignore[untyped-decorator, unused-ignore]
def render_message(job: str, epoch: int, version: int = 0, **_unknown: object) -> None:
    """A hand-over arrived: do the job, if it is ours to do."""
    assert _shift is not None  # made before Celery consumes
    _shift.hear()
    if version != broker.MESSAGE_VERSION:
        # Unclaimed, the job is offered again when its dispatch lease runs out, perhaps to a worker that understands it.
        log.warning("a message of another version", action="message_unknown", job=job, epoch=epoch, version=version)
        return
    failpoints.at("after_receive")
    render(_shift.bench, job, epoch)


@signals.setup_logging.connect
def _log(loglevel: int | None = None, logfile: str | None = None, **_: object) -> None:
    """Log as the rest of the farm does; ``-l`` is about Celery's own lines, ``-f`` about where all go."""
    configure(settings(), "worker")
    if logfile:
        root = logging.getLogger()
        handler = logging.FileHandler(logfile)
        handler.setFormatter(root.handlers[0].formatter)
        root.handlers[:] = [handler]
    for name in ("celery", "kombu", "amqp"):
        logging.getLogger(name).setLevel(loglevel or logging.WARNING)
    for name in ("httpx", "httpcore", "botocore", "urllib3", "huggingface_hub", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)


@signals.celeryd_init.connect
def _begin(instance: Any = None, conf: Any = None, options: dict[str, Any] | None = None, **_: object) -> None:
    """A worker process begins: pin, join, and take its own queue only. Runs before Celery reads its settings."""
    global _shift  # noqa: PLW0603 - Celery's signals leave no other place for what one process is
    # Celery swallows exceptions of signal handlers, but not this one, and prints its sentence
    try:
        _require_threads(options or {})
        _log()
        tracing.configure(settings(), "worker")
        _shift = Shift(settings(), app)
        if instance.hostname == default_nodename(None):  # not named with -n
            instance.hostname = f"{_shift.device_name}@{_shift.host}"
        conf.worker_concurrency = _shift.capacity
        conf.task_queues = (broker.queue_of(_shift.name),)
        conf.task_default_queue = broker.queue_of(_shift.name).name
        _shift.begin()
    except SetupError as error:
        raise SystemExit(f"farm worker: {error}") from error


@signals.worker_shutting_down.connect
def _asked_to_end(**_: object) -> None:
    if _shift is not None:
        _shift.ask_to_end()


@signals.worker_shutdown.connect
def _end(**_: object) -> None:
    if _shift is not None:
        _shift.end()


def _require_threads(options: dict[str, Any]) -> None:
    """Raise `SetupError` for ``-P`` with another pool; Celery itself takes prefork for the configured one."""
    pool = options.get("pool") or options.get("pool_cls")
    if pool is None or pool == "threads" or getattr(pool, "__module__", None) == _POOL:
        return
    raise SetupError("the farm's worker needs Celery's threads pool, because one process owns one device; leave out -P")
