"""One worker process, from joining the farm to leaving it.

    pin the device ─► clear the old messages ─► join ─► (Celery consumes) ─► drain ─► leave

The end comes in two steps, as with most servers: the first signal lets jobs on the device finish for ``drain_seconds``
and gives the waiting ones back at once; the second one gives everything back.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from enum import Enum
from typing import Final, TypeVar

import structlog
from celery import Celery

from farm import lifecycle, metrics, model_registry
from farm.dispatch import broker
from farm.domain.model import Model, Registry
from farm.domain.worker import WorkerInfo, WorkerState
from farm.errors import BrokerUnavailable, DatabaseUnavailable, SetupError
from farm.objects.storage import Storage
from farm.settings import Settings
from farm.store.unit_of_work import Store
from workers import device as devices
from workers import device_metrics
from workers.consumer_watchdog import Ear
from workers.device import Upkeep
from workers.engine import Engine
from workers.group_commit import Ledger
from workers.heartbeat import EXIT_STALLED, Heartbeat, Watch
from workers.job_runner import Bench, pauses
from workers.leases import Rights, Stage, Why
from workers.progress_reporter import Reporter
from workers.upload_spool import Shelf

log = structlog.stdlib.get_logger()
T = TypeVar("T")

#: Jobs that a device renders at once when they share forwards, by the device's kind.
SLOTS: Final = {"cuda": 16, "mps": 8, "cpu": 4}
LAST_SECONDS: Final = 10.0  #: for stopped jobs to be given back, before the process ends without them


class End(Enum):
    """Why a process's shift ends."""

    ASKED = "asked"  #: by a signal
    DEAF = "deaf"  #: its consumer fell silent; a fresh process will hear


class Shift:
    """What one worker process is and holds. Make it before torch is imported: it pins the device."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        """Raises `SetupError` if this machine cannot do what was asked."""
        devices.require_libraries()
        choice = devices.choose(settings.device)
        devices.pin(choice)
        self.settings = settings
        self.host = settings.worker_host or socket.gethostname()
        self.device_name = choice.index
        self.name = f"{self.host}/{choice.index}"  #: the worker's name in the farm
        self._app = app
        self._boot_id = uuid.uuid4().hex
        self._models: Registry = model_registry.load(settings.models_file)
        self._slots = slots(settings.batching, choice.kind)
        self.capacity = self._slots + settings.prefetch  #: jobs in this process at once
        rights = Rights()
        # each job's thread, the heartbeat and the reporter may each hold a connection
        database = Store.connect(settings, pool=self.capacity + 2)
        self.bench = Bench(
            worker=self.name,
            settings=settings,
            store=database,
            storage=Storage(settings),
            engine=Engine(
                choice,
                settings.torch_threads,
                self._slots,
                settings.batch_rows,
                settings.data_dir / "lessons",
                Upkeep(settings.cpu_model_cache_bytes, settings.data_dir / "compiled" if settings.compile else None),
            ),
            ledger=Ledger(database, self.name, settings.run_lease_seconds),
            reporter=Reporter(database, rights),
            rights=rights,
            shelf=Shelf(settings.data_dir / "shelf" / self.name.replace("/", "-")),
            model=self._model,
        )
        self._ear = Ear(
            app,
            self.name,
            settings.consumer_stall_seconds,
            lambda: len(rights.all()) >= self.capacity,
            lambda: self._signals.put(End.DEAF),
        )
        # the way of every other end: Celery hears the signal, stops consuming and calls `ask_to_end`
        self._heartbeat = Heartbeat(self.bench, self._boot_id, lambda: os.kill(os.getpid(), signal.SIGTERM))
        self._watch = Watch(rights, self.bench.engine, settings, self.name)
        # put() of a SimpleQueue may be called from a signal handler, which a lock may not
        self._signals: queue.SimpleQueue[End] = queue.SimpleQueue()
        self._left = threading.Event()

    def begin(self) -> None:
        """Join the farm. Waits for servers that are away. Raises `SetupError` if the device is not there."""
        engine = self.bench.engine
        engine.start()
        device = engine.device.result()
        info = WorkerInfo(
            name=self.name,
            boot_id=self._boot_id,
            host=self.host,
            device=device,
            slots=self._slots,
            prefetch=self.settings.prefetch,
            pid=os.getpid(),
            versions=devices.versions(),
        )
        # Messages first: those of a dead process are for jobs that joining gives back.
        patiently(lambda: broker.purge(self._app, self.name))
        lost = patiently(lambda: self._join(info))
        for job in lost:
            log.warning("taken back from this worker's last process", action="job_taken_back", job=job)
        log.info(
            "joined",
            action="worker_joined",
            worker=self.name,
            device=device.name,
            dtype=device.dtype,
            memory_gib=round(device.memory_bytes / 2**30, 1),
        )
        device_metrics.watch(device)
        metrics.serve(self.settings, self.settings.metrics_worker_port)
        for thread in (self.bench.reporter, self._heartbeat, self._watch, self._ear):
            thread.start()
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def ask_to_end(self) -> None:
        """A signal to stop came; a second one makes it quick. May be called from a signal handler."""
        self._signals.put(End.ASKED)

    def hear(self) -> None:
        """A message arrived."""
        self._ear.hear()

    def end(self) -> None:
        """Leave the farm: what is still held goes back to the queue."""
        if self._left.is_set():
            return
        self._left.set()
        self._heartbeat.close()
        self._watch.close()
        if self._heartbeat.is_alive():
            self._heartbeat.join(5)  # a beat after the goodbye would bring this worker back online
        try:
            with self.bench.store.begin() as unit:
                left = lifecycle.leave(unit, self.name, self._boot_id)
        except DatabaseUnavailable:
            log.warning("cannot say goodbye; the leases will", action="leave_failed", worker=self.name)
        else:
            log.info("left", action="worker_left", worker=self.name, given_back=len(left))
        self.bench.reporter.close()
        self.bench.engine.close()

    def _join(self, info: WorkerInfo) -> list[str]:
        with self.bench.store.begin() as unit:
            return lifecycle.join(unit, info)

    def _model(self, model_id: str) -> Model | None:
        found = self._models.get(model_id)
        if found is None:  # the file may have grown since this process began
            try:
                self._models = model_registry.load(self.settings.models_file)
            except SetupError as error:
                log.warning("the models file is broken", action="registry_broken", error=str(error))
            found = self._models.get(model_id)
        return found

    def _drain(self) -> None:
        """Wait for the first reason to end, then empty this process's hands."""
        why = self._signals.get()
        self._ear.close()
        rights = self.bench.rights
        log.info("draining", action="worker_draining", worker=self.name, held=len(rights.all()))
        try:
            with self.bench.store.begin() as unit:
                unit.workers.set_state(self.name, WorkerState.DRAINING, self._boot_id)
        except DatabaseUnavailable:
            log.warning("cannot tell that this worker drains", action="drain_untold", worker=self.name)
        give_up_at = time.monotonic() + self.settings.drain_seconds
        while time.monotonic() < give_up_at and self._signals.empty():
            for right in rights.all():
                if right.stage in (Stage.FETCHING, Stage.WAITING):
                    right.stop(Why.DRAINED)
            if rights.wait_empty(0.1):
                break
        for right in rights.all():
            right.stop(Why.DRAINED)
        if not rights.wait_empty(LAST_SECONDS):
            # Celery would wait for the threads of hanging jobs for ever
            log.warning("ending in spite of hanging jobs", action="worker_abandons", held=len(rights.all()))
            self.end()
            os._exit(1)
        if why is End.DEAF:
            # a consumer that hears nothing does not hear that it should end, either
            self.end()
            os._exit(EXIT_STALLED)


def slots(batching: str, kind: str) -> int:
    """Jobs on a device at once: several that share forwards, or one."""
    return 1 if batching == "off" else SLOTS[kind]


def patiently(action: Callable[[], T]) -> T:
    """Do something that needs a server, trying again while it is away."""
    for pause in pauses():
        try:
            return action()
        except (BrokerUnavailable, DatabaseUnavailable) as error:
            log.warning("waiting", action="server_unavailable", error=str(error))
            time.sleep(pause)
    raise AssertionError  # pauses() never ends
