"""Keeps the engine in a process of its own, and looks like an `Engine` to the rest of the worker.

Python runs one thread of a process at a time, so a worker whose consumer, uploads and heartbeats share a process with
the engine makes the device wait for them. A crash of the engine's process (a segmentation fault, the kernel's
out-of-memory killer, a failed device, a forward that hangs) ends that process only: the jobs that the device had
started fail with `DeviceFailed`, the others are released, and a new process starts while the worker stays joined.
"""

from __future__ import annotations

import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import fields
from typing import Any, Final

import structlog
from prometheus_client import Metric
from prometheus_client.registry import Collector

from farm.domain.numerics import Numerics
from farm.domain.worker import Device, ResidentModel
from farm.errors import DeviceFailed, JobCanceled, SetupError
from workers import engine_messages as messages
from workers.channel import Channel
from workers.engine import EngineOptions
from workers.render_request import RenderRequest, RenderResult

log = structlog.stdlib.get_logger()

MODULE = "workers.engine_child"  #: what the process runs; tests and benches have others
SHORT_LIFE_SECONDS: Final = 60.0  #: of an engine that ends without having finished a job
MAX_SHORT_LIVES: Final = 3  #: in a row, then the worker gives up: a new process of the worker's may find another state
KILL_SECONDS: Final = 10.0  #: for a killed process to end; one that waits for a driver may not
METRICS_SECONDS: Final = 1.0  #: for the engine to answer a scrape
#: Fields of a request that belong to the worker's side.
_OWN_FIELDS: Final = frozenset({"stop", "future"})


class EngineProcess(threading.Thread):
    """The engine of a worker, in a process of its own. The public methods may be called from any thread."""

    def __init__(
        self,
        options: EngineOptions,
        on_device_failure: Callable[[], object] | None = None,
        *,
        module: str | None = None,
    ) -> None:
        """Prepare the thread that starts the process and reads what it says.

        Args:
            options: Of the engine.
            on_device_failure: Called once, when no engine lives long enough to finish a job.
            module: What the process runs; `MODULE` if absent.
        """
        super().__init__(name="engine process", daemon=True)
        self._options = options
        self._module = module or MODULE
        self._on_device_failure = on_device_failure
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: dict[int, RenderRequest] = {}  # not finished, by number
        self._on_device: set[int] = set()  # those that the device has started
        self._next_number = 1
        self._closing = False
        self._given_up = False
        self._killed_because: str | None = None
        self._finished_some = False
        self._status = messages.Status(0, (), True, 0.0)
        self._status_at = time.monotonic()
        self._metrics: tuple[Metric, ...] = ()
        self._metrics_arrived = threading.Event()
        self.device: Future[Device] = Future()  #: known once torch has described it
        self.numerics: Future[Numerics] = Future()  #: known after that

    # -- from other threads --------------------------------------------------------------------------------------------

    def submit(self, request: RenderRequest) -> Future[RenderResult]:
        """Queue a request. Its future fails with `RenderError`, or with what the pipeline raised."""
        with self._lock:
            if self._given_up:
                request.future.set_exception(DeviceFailed("the engine does not start", started=False))
                return request.future
            if not self._requests:
                self._status_at = time.monotonic()  # an idle engine has not stalled
            number, self._next_number = self._next_number, self._next_number + 1
            self._requests[number] = request
            self._send(_submit(number, request))
        return request.future

    def withdraw(self, request: RenderRequest) -> bool:
        """Stop a request: at once if the device has not started it, else at its next step. False: not known yet."""
        with self._lock:
            for number, one in self._requests.items():
                if one is request:
                    self._send(messages.Stop(number))
        return False

    def job_left(self, owner: Hashable) -> None:
        """The job of that owner has left the worker, however it ended."""
        with self._lock:
            self._send(messages.JobLeft(owner))

    @property
    def waiting(self) -> int:
        """Jobs that wait for the device."""
        return len(self._requests) - len(self._on_device)

    @property
    def loaded(self) -> tuple[ResidentModel, ...]:
        """The models in the device's memory, least recently used first."""
        return self._status.loaded

    @property
    def loading(self) -> bool:
        """Whether a model, or torch itself, is being loaded."""
        return self._status.loading

    @property
    def seconds_without_progress(self) -> float:
        """How long it has had work without progress, or said nothing while it had; 0 without work."""
        # without the lock: a thread that sends to a process that takes nothing holds it
        silent = time.monotonic() - self._status_at
        status = self._status
        return status.seconds_without_progress + silent if self._requests or status.loading else 0.0

    def resume_after_nap(self) -> None:
        """The whole machine was stopped for a while, which is no stall."""
        with self._lock:
            self._status_at = time.monotonic()
            self._send(messages.ResumeAfterNap())

    def kill(self, reason: str) -> bool:
        """End the engine's process at once; another one starts. False if it does not end.

        ``reason``: what the errors of its jobs say, such as "the device hangs".
        """
        process, self._killed_because = self._process, reason  # without the lock, as above
        if process is None:
            return True
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECONDS)
        return process.poll() is not None

    def close(self) -> None:
        """End the process when its device is empty."""
        with self._lock:
            self._closing = True
            self._send(messages.Close())

    def ask_metrics(self) -> tuple[Metric, ...]:
        """What the engine's process counts; its last answer if it does not answer in time."""
        self._metrics_arrived.clear()
        with self._lock:
            self._send(messages.AskMetrics())
        self._metrics_arrived.wait(METRICS_SECONDS)
        return self._metrics

    # -- its own thread ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Keep an engine running until closed."""
        short_lives = 0
        while True:
            began = time.monotonic()
            self._finished_some = False
            self._start_process()
            self._read_until_gone()
            reason = self._why_gone()
            short = time.monotonic() - began < SHORT_LIFE_SECONDS and not self._finished_some
            short_lives = short_lives + 1 if short else 0
            if self._closing or not self._may_restart(reason, short_lives):
                self._fail_jobs(reason, give_up=True)
                return
            self._fail_jobs(reason)
            log.critical("the engine's process ended; another one starts", action="engine_lost", reason=reason)

    def _start_process(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", self._module, str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)  # noqa: S603 - ours
        channel = Channel(ours)
        with self._lock:
            self._process, self._channel = process, channel
            self._killed_because = None
            self._status, self._status_at = messages.Status(0, (), True, 0.0), time.monotonic()
            self._send(messages.Start(self._options))
            for number, request in self._requests.items():  # submitted while there was no process
                self._send(_submit(number, request))
            if self._closing:
                self._send(messages.Close())

    def _read_until_gone(self) -> None:
        assert self._channel is not None
        while True:
            try:
                message = self._channel.receive()
            except EOFError:
                return
            self._take(message)

    def _take(self, message: object) -> None:
        match message:
            case messages.Called(number, name, arguments):
                with self._lock:
                    request = self._requests.get(number)
                    if name == "on_start":
                        self._on_device.add(number)
                if request is not None:
                    getattr(request, name)(*arguments)
            case messages.Finished(number, outcome):
                with self._lock:
                    request = self._requests.pop(number, None)
                    self._on_device.discard(number)
                self._finished_some |= isinstance(outcome, RenderResult)
                if request is not None:
                    _settle(request.future, outcome)
            case messages.Status():
                with self._lock:
                    self._status, self._status_at = message, time.monotonic()
            case messages.Metrics(found):
                self._metrics = found
                self._metrics_arrived.set()
            case messages.Described(device):
                self._learn(self.device, device)
            case messages.Computed(numerics):
                self._learn(self.numerics, numerics)
            case messages.DeviceLost():
                with self._lock:
                    self._killed_because = "the device failed"
            case _:
                raise TypeError(f"no message of an engine: {message!r}")

    def _learn(self, future: Future[Any], found: Any) -> None:
        """Take what an engine says of itself. A later one must say what the first did: the worker joined with it."""
        if not future.done():
            _settle(future, found)
        elif isinstance(found, messages.ForeignError | BaseException):
            self._give_up(f"the device is not usable: {found}")
        elif isinstance(found, Numerics) and found.name != future.result().name:
            self._give_up("a new engine has another numerics class")

    def _why_gone(self) -> str:
        """Wait for the end of the process; a sentence about it."""
        assert self._process is not None
        assert self._channel is not None
        try:
            code = self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:  # it closed its end and goes on: it must not keep the device
            self._process.kill()
            code = self._process.wait()
        with self._lock:
            self._channel.close()
            self._channel = None
        if self._killed_because is not None:
            return self._killed_because
        if code < 0:
            with suppress(ValueError):
                return f"the engine was ended by {signal.Signals(-code).name}"
        return f"the engine ended with exit code {code}"

    def _may_restart(self, reason: str, short_lives: int) -> bool:
        for future in (self.device, self.numerics):
            if not future.done():  # the worker has not joined yet: it ends, and its supervisor tries again
                future.set_exception(SetupError(f"cannot start the engine: {reason}"))
                return False
            if future.exception() is not None:
                return False
        if short_lives >= MAX_SHORT_LIVES:
            self._give_up(reason)
        return not self._given_up

    def _give_up(self, reason: str) -> None:
        if self._given_up:
            return
        log.critical("no engine starts on this device", action="engine_given_up", reason=reason)
        self._given_up = True
        if self._on_device_failure is not None:
            self._on_device_failure()

    def _fail_jobs(self, reason: str, *, give_up: bool = False) -> None:
        """The engine is gone: fail every job that it had."""
        with self._lock:
            self._given_up = self._given_up or give_up
            requests, started = self._requests, self._on_device
            self._requests, self._on_device = {}, set()
            self._status = messages.Status(0, (), not self._given_up, 0.0)
        for number, request in requests.items():
            if request.stop.is_set():
                request.future.set_exception(JobCanceled("the job was stopped"))
            else:
                request.future.set_exception(DeviceFailed(reason, started=number in started))

    def _send(self, message: object) -> None:
        """Send with the lock held; a process that is gone is noticed by the thread that reads."""
        if self._channel is not None:
            with suppress(OSError):
                self._channel.send(message)


class EngineMetrics(Collector):
    """The metrics of the engine's process, as the worker's own."""

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is depends on the device."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Ask the engine's process."""
        yield from self._engine.ask_metrics()


def _submit(number: int, request: RenderRequest) -> messages.Submit:
    given = {one.name: getattr(request, one.name) for one in fields(request) if one.name not in _OWN_FIELDS}
    callbacks = frozenset(name for name, value in given.items() if name.startswith("on_") and value is not None)
    data = {name: value for name, value in given.items() if not name.startswith("on_")}
    data["checkpoint_parts"] = tuple(map(pickle.PickleBuffer, request.checkpoint_parts))  # large: in shared memory
    return messages.Submit(number, data, callbacks, request.stop.is_set())


def _settle(future: Future[Any], outcome: object) -> None:
    if isinstance(outcome, messages.ForeignError):
        future.set_exception(outcome.error())
    elif isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
