"""The worker as a Celery app: ``celery -A workers.app worker``, or ``farm worker``, which runs the same.

Celery only delivers messages: it takes one from this worker's own queue and runs `render_message` in a thread of its
pool. `workers.job_runner` runs the job; `workers.process` starts and ends the process. Importing this module imports
neither torch nor a device library, so that ``celery inspect`` and Flower can import it, too.
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
from workers.job_runner import summary_of
from workers.process import WorkerProcess

log = structlog.stdlib.get_logger()

try:
    app = broker.make_app(settings())
except SetupError as error:  # an operator runs this module through Celery's program: one sentence, no traceback
    raise SystemExit(f"farm worker: {error}") from error
# Before Celery reads its command line: its default pool is the configured one. CUDA does not work in a forked process.
app.conf.worker_pool = "threads"
app.conf.worker_consumer = "workers.consumer:Consumer"

_POOL: Final = "celery.concurrency.thread"
_process: WorkerProcess | None = None


@app.task(name=broker.RENDER)  # type: ignore[untyped-decorator, unused-ignore]
def render_message(job: str, epoch: int, version: int = 0, **_unknown: object) -> None:
    """Run the job of a message, if this worker may claim it."""
    assert _process is not None  # made before Celery consumes
    _process.record_message()
    if version != broker.MESSAGE_VERSION:
        # Unclaimed, the job is requeued when its dispatch lease ends, perhaps for a worker that knows this version.
        log.warning("unknown message version", action="message_unknown", job=job, epoch=epoch, version=version)
        return
    failpoints.at("after_receive")
    _process.job_runner.run(job, epoch)


@signals.setup_logging.connect
def _log(loglevel: int | None = None, logfile: str | None = None, **_: object) -> None:
    """Log like the rest of the farm; ``-l`` sets the level of Celery's own lines, ``-f`` the file for all lines."""
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
def _start(instance: Any = None, conf: Any = None, options: dict[str, Any] | None = None, **_: object) -> None:
    """Start the worker process: pin, join, and consume its own queue only. Runs before Celery reads its settings."""
    global _process  # noqa: PLW0603 - Celery's signals leave no other place for the state of one process
    # Celery ignores exceptions of signal handlers, except SystemExit, whose message it prints
    try:
        _check_options(options or {})
        _log()
        tracing.configure(settings(), "worker")
        _process = WorkerProcess(settings(), app)
        if instance.hostname == default_nodename(None):  # not named with -n
            instance.hostname = f"{_process.device_name}@{_process.host}"
        conf.worker_concurrency = _process.threads
        conf.task_queues = (broker.queue_of(_process.name),)
        conf.task_default_queue = broker.queue_of(_process.name).name
        _process.start()
    except SetupError as error:
        raise SystemExit(f"farm worker: {error}") from error
    except Exception as error:
        # with any other exception Celery would go on, and consume as a worker that never joined
        log.exception("cannot start", action="worker_start_failed")
        raise SystemExit(f"farm worker: cannot start: {summary_of(error)}") from error


@signals.worker_shutting_down.connect
def _request_shutdown(**_: object) -> None:
    if _process is not None:
        _process.request_shutdown()


@signals.worker_shutdown.connect
def _leave(**_: object) -> None:
    if _process is not None:
        _process.leave()


#: Options of Celery's that have no place in a worker of the farm, and why.
_REFUSED_OPTIONS: Final = {
    "autoscale": "its device decides how many jobs it runs at once",
    "concurrency": "its device decides how many jobs it runs at once",
    "prefetch_multiplier": "FARM_PREFETCH says how many jobs wait at a worker",
    "queues": "it consumes its own queue only",
    "exclude_queues": "it consumes its own queue only",
    "beat": "the farm has no periodic tasks",
    "max_tasks_per_child": "it has threads and no child processes",
    "max_memory_per_child": "it has threads and no child processes",
    "purge": "its queue holds jobs that were dispatched to it",
}


def _check_options(options: dict[str, Any]) -> None:
    """Raise `SetupError` for an option of Celery's that cannot work here."""
    pool = options.get("pool") or options.get("pool_cls")
    if not (pool is None or pool == "threads" or getattr(pool, "__module__", None) == _POOL):
        raise SetupError("a worker needs Celery's threads pool, because one process owns one device; leave out -P")
    for name, reason in _REFUSED_OPTIONS.items():
        # Celery fills in its own setting where the option is not given
        if options.get(name) and options[name] != app.conf.get(f"worker_{name}"):
            option = name.replace("_", "-")
            raise SetupError(f"Celery's option --{option} cannot be used with a worker: {reason}; leave it out")
