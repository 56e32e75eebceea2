"""One worker process, from joining the farm to leaving it.

    pin the device ─► clear the old messages ─► join ─► (Celery consumes) ─► drain ─► leave

A shutdown has two steps. The first signal releases waiting jobs at once, and with a checkpoint those on the device that
will not finish within ``drain_seconds``; the others finish. The second signal releases all jobs.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import threading
import time
import uuid
from enum import Enum
from typing import Final

import structlog
from celery import Celery

from farm import lifecycle, metrics
from farm.dispatch import broker
from farm.domain.worker import WorkerInfo, WorkerState
from farm.errors import DatabaseUnavailable, SetupError
from farm.objects.storage import Storage
from farm.services.live_registry import LiveRegistry
from farm.settings import Settings
from farm.store.migrate import require_schema
from farm.store.unit_of_work import MAX_SKEW_SECONDS, Store
from workers import device as devices
from workers.checkpoints.writer import CheckpointWriter
from workers.consumer_watchdog import ConsumerWatchdog
from workers.engine import EXIT_ENGINE_FAILED, EngineOptions
from workers.engine_process import EngineMetrics, EngineProcess
from workers.group_commit import MAX_TRANSACTIONS, GroupCommit
from workers.heartbeat import EXIT_STALLED, HeartbeatThread, Watchdog, describe_skew
from workers.job_runner import JobRunner
from workers.leases import Lease, Leases, Stage, StopReason
from workers.model_checks import ModelChecker
from workers.model_files import ModelFiles
from workers.prefetch import PrefetchControl
from workers.progress_reporter import ProgressReporter
from workers.retry import retry_until_available
from workers.upload_spool import UploadSpool

log = structlog.stdlib.get_logger()

#: Jobs that a device renders at once when they share forwards, by the device's kind.
SLOTS: Final = {"cuda": 16, "mps": 8, "cpu": 4}
ABORT_SECONDS: Final = 10.0  #: for stopped jobs to be released, before the process ends without waiting for them


class ShutdownReason(Enum):
    """Why a process shuts down."""

    SIGNAL = "signal"
    CONSUMER_STALLED = "consumer_stalled"  #: a new process gets a new consumer
    DEVICE_FAILED = "device_failed"  #: no engine starts on it any more; a supervisor waits before it tries again


#: Names that a URL of the API can have in its path, so that the worker can be drained.
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}/[A-Za-z0-9_-][A-Za-z0-9:._-]{0,90}", re.ASCII)


class WorkerProcess:
    """The state of one worker process. Make it before torch is imported: it pins the device."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        """Raises `SetupError` if this machine lacks what the settings ask for."""
        devices.require_libraries()
        choice = devices.choose(settings.device)
        devices.pin(choice)
        self.host = settings.worker_host or socket.gethostname()
        self.device_name = choice.index
        self.name = f"{self.host}/{choice.index}"  #: the worker's name in the farm
        if _NAME.fullmatch(self.name) is None:
            raise SetupError(
                f"{self.name!r} cannot be a worker's name: a host has letters, digits, `.`, `_` and `-`, and at most "
                "200 characters; set FARM_WORKER_HOST"
            )
        self._settings = settings
        self._app = app
        self._boot_id = uuid.uuid4().hex
        self._slots = slots(settings.batching, choice.kind)
        self._prefetch = PrefetchControl(self._slots, settings.prefetch, settings.max_prefetch)
        self.capacity = self._slots + self._prefetch.most  #: jobs in this process at once, but for interactive ones
        self.threads = self.capacity + self._slots  #: for interactive jobs for which others step back, too
        self._leases = Leases()
        # beside group commit, heartbeat, reporter, registry and checkpoints, a job that does not succeed needs one
        connections = MAX_TRANSACTIONS + self._slots + settings.prefetch + 4
        self._store = Store.connect(settings, pool=connections)
        self._models = LiveRegistry(settings, self._store)
        self._engine = EngineProcess(
            EngineOptions(
                choice,
                torch_threads=settings.torch_threads,
                slots=self._slots,
                max_rows=settings.batch_rows,
                profiles_dir=settings.data_dir / "batch-profiles",
                cpu_cache_bytes=settings.cpu_model_cache_bytes,
                compile_dir=settings.data_dir / "compiled" if settings.compile else None,
            ),
            on_device_failure=lambda: self._shutdown.put(ShutdownReason.DEVICE_FAILED),
        )
        self._reporter = ProgressReporter(self._store, self._leases)
        storage = Storage(settings)
        self._checkpoints = CheckpointWriter(self._store, storage, settings.checkpoint_seconds)
        self._model_files = ModelFiles(
            storage, (settings.model_cache_dir or settings.data_dir / "models").absolute(), settings.model_cache_bytes
        )
        self.job_runner = JobRunner(
            worker=self.name,
            settings=settings,
            store=self._store,
            storage=storage,
            engine=self._engine,
            group_commit=GroupCommit(self._store, self.name, settings.run_lease_seconds),
            reporter=self._reporter,
            leases=self._leases,
            spool=UploadSpool(settings.data_dir / "spool" / self.name.replace("/", "-")),
            checkpoints=self._checkpoints,
            find_model=self._models.known,
            model_files=self._model_files,
            prefetch=self._prefetch,
        )
        self._consumer_watchdog = ConsumerWatchdog(
            app,
            self.name,
            settings.consumer_stall_seconds,
            is_full=lambda: len(self._leases.all()) >= self.capacity,
            on_stall=lambda: self._shutdown.put(ShutdownReason.CONSUMER_STALLED),
        )
        self._heartbeat = HeartbeatThread(
            self.name,
            self._boot_id,
            settings,
            self._store,
            self._engine,
            self._leases,
            self._prefetch,
            # like every other shutdown: Celery gets the signal, stops consuming and calls `request_shutdown`
            on_stop_request=lambda: os.kill(os.getpid(), signal.SIGTERM),
        )
        self._watchdog = Watchdog(
            self._leases,
            self._engine,
            settings,
            self.name,
            settings.worker_alive_file,
            on_nap=self._heartbeat.beat_now,
        )
        # put() of a SimpleQueue may be called from a signal handler; acquiring a lock may not
        self._shutdown: queue.SimpleQueue[ShutdownReason] = queue.SimpleQueue()
        self._left = threading.Event()
        self._checker: ModelChecker | None = None

    def start(self) -> None:
        """Join the farm. Waits for servers that do not answer. Raises `SetupError` if the device is missing."""
        self._engine.start()
        device = self._engine.device.result()
        try:
            numerics = self._engine.numerics.result()
        except RuntimeError as error:  # of the operations that every pipeline consists of
            raise SetupError(f"{device.name} does not compute: {type(error).__name__}: {error}") from error
        info = WorkerInfo(
            name=self.name,
            boot_id=self._boot_id,
            host=self.host,
            device=device,
            slots=self._slots,
            prefetch=self._settings.prefetch,
            pid=os.getpid(),
            tags=self._settings.worker_tags,
            versions=devices.versions(),
            numerics=numerics,
        )
        retry_until_available(lambda: require_schema(self._store))
        retry_until_available(lambda: broker.check(self._app))
        # Messages first: those of an earlier process are for jobs that joining requeues.
        retry_until_available(lambda: broker.purge(self._app, self.name))
        require_clock(retry_until_available(self._clock_skew))
        for job in retry_until_available(lambda: self._join(info)):
            log.warning("requeued: an earlier process of this worker held it", action="job_requeued", job=job)
        log.info(
            "joined",
            action="worker_joined",
            worker=self.name,
            device=device.name,
            dtype=device.dtype,
            numerics=numerics.name,
            torch_threads=numerics.facts.get("threads"),  # on a processor
            memory_gib=round(device.memory_bytes / 2**30, 1),
        )
        metrics.serve_engine(EngineMetrics(self._engine))
        metrics.ENGINE_QUEUE.set_function(lambda: self._engine.waiting)
        metrics.serve(self._settings, self._settings.metrics_worker_port)
        for thread in (self._reporter, self._checkpoints, self._heartbeat, self._watchdog, self._consumer_watchdog):
            thread.start()
        self._checker = ModelChecker(
            self.name,
            device,
            frozenset(self._settings.worker_tags),
            self._store,
            self._engine,
            self.job_runner.storage,
            self._model_files,
            self._settings.heartbeat_seconds,
        )
        self._checker.start()
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def record_message(self) -> None:
        """Record that the consumer took a message."""
        self._consumer_watchdog.record_message()

    def request_shutdown(self) -> None:
        """Shut down; a second request releases all jobs at once. May be called from a signal handler."""
        self._shutdown.put(ShutdownReason.SIGNAL)

    def leave(self) -> None:
        """Leave the farm: jobs that are still held return to their queues."""
        if self._left.is_set():
            return
        self._left.set()
        self._heartbeat.close()
        self._watchdog.close()
        if self._heartbeat.is_alive():
            self._heartbeat.join(5)  # a later heartbeat would bring this worker back online
        try:
            with self._store.begin() as unit:
                released = lifecycle.leave(unit, self.name, self._boot_id)
        except DatabaseUnavailable:
            log.warning("cannot leave the farm; the leases will run out", action="leave_failed", worker=self.name)
        else:
            log.info("left", action="worker_left", worker=self.name, released=len(released))
        self._reporter.close()
        self._checkpoints.close()
        self._engine.close()

    def _clock_skew(self) -> float:
        with self._store.look() as unit:
            return unit.clock_skew()

    def _join(self, info: WorkerInfo) -> list[str]:
        with self._store.begin() as unit:
            return lifecycle.join(unit, info)

    def _outlasts(self, lease: Lease, give_up_at: float) -> bool:
        """Whether the job will not finish in time: another worker goes on from its checkpoint."""
        if not self._settings.checkpoint_seconds:
            return False
        left = lease.seconds_to_finish()
        return left is not None and time.monotonic() + left > give_up_at

    def _drain(self) -> None:
        """Wait for a shutdown request, then for the jobs to finish or be released."""
        reason = self._shutdown.get()
        if self._checker is not None:
            self._checker.close()
        self._consumer_watchdog.close()
        log.info("draining", action="worker_draining", worker=self.name, held=len(self._leases.all()))
        try:
            with self._store.begin() as unit:
                unit.workers.set_state(self.name, WorkerState.DRAINING, self._boot_id)
        except DatabaseUnavailable:
            log.warning("cannot write that this worker drains", action="drain_unwritten", worker=self.name)
        give_up_at = time.monotonic() + self._settings.drain_seconds
        while time.monotonic() < give_up_at and self._shutdown.empty():
            for lease in self._leases.all():
                if lease.stage in (Stage.FETCHING, Stage.WAITING) or self._outlasts(lease, give_up_at):
                    lease.stop(StopReason.DRAINED)
            if self._leases.wait_empty(0.1):
                break
        for lease in self._leases.all():
            lease.stop(StopReason.DRAINED)
        if not self._leases.wait_empty(ABORT_SECONDS):
            # Celery would wait for the threads of hanging jobs without end
            log.warning("ending although jobs hang", action="drain_aborted", held=len(self._leases.all()))
            self.leave()
            os._exit(1)
        if reason is ShutdownReason.CONSUMER_STALLED:
            # a stalled consumer does not react to a request to end, either
            self.leave()
            os._exit(EXIT_STALLED)
        if reason is ShutdownReason.DEVICE_FAILED:
            self.leave()
            os._exit(EXIT_ENGINE_FAILED)


def require_clock(skew: float) -> None:
    """Refuse to join with a clock that S3 would refuse: ``skew`` is in seconds ahead of the database's.

    Raises `SetupError`.
    """
    if abs(skew) > MAX_SKEW_SECONDS:
        raise SetupError(describe_skew(skew))


def slots(batching: str, kind: str) -> int:
    """Jobs on a device at once: several that share forwards, or one."""
    return 1 if batching == "off" else SLOTS[kind]
