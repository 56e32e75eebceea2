"""The engine's process: ``python -m workers.engine_child DESCRIPTOR``, started by `workers.engine_process`.

It owns the device and does nothing else: claims, inputs, encoding, uploads and heartbeats are the worker's, in another
process, so that no forward waits for them. It ends with the worker, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

import structlog
from prometheus_client import REGISTRY

from farm import metrics
from farm.errors import FarmError
from farm.log import configure
from farm.settings import settings
from workers import device_metrics, failpoints
from workers import engine_messages as messages
from workers.channel import Channel
from workers.engine import EXIT_ENGINE_FAILED, Engine
from workers.render_request import CheckpointPart, RenderRequest, RenderResult

log = structlog.stdlib.get_logger()

STATUS_SECONDS: Final = 0.5  #: between two messages about the engine's state
PR_SET_PDEATHSIG: Final = 1  #: of prctl(2)


class EngineChild:
    """Passes messages between the worker and the engine."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: dict[int, RenderRequest] = {}
        self._closing = threading.Event()
        self._slow: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._with_parts: set[int] = set()  # requests of which parts were sent, or will be
        start: messages.Start = channel.receive()
        self._engine = Engine(start.options, on_device_failure=self._lose_device)

    def run(self) -> None:
        """Serve until the worker closes the connection or is gone."""
        self._engine.device.add_done_callback(self._describe)
        self._engine.numerics.add_done_callback(lambda found: self._send(messages.Computed(_outcome(found))))
        self._engine.start()
        threading.Thread(target=self._tell_status, name="status", daemon=True).start()
        threading.Thread(target=self._send_slowly, name="checkpoints", daemon=True).start()
        while True:
            try:
                message = self._channel.receive()
            except EOFError:
                os._exit(0)  # nobody is left for whom to render
            self._take(message)

    def _take(self, message: object) -> None:
        match message:
            case messages.Submit():
                self._submit(message)
            case messages.Stop(number):
                if (request := self._requests.get(number)) is not None:
                    request.stop.set()
                    self._engine.withdraw(request)
            case messages.JobLeft(owner):
                self._engine.job_left(owner)
            case messages.ResumeAfterNap():
                self._engine.resume_after_nap()
            case messages.AskMetrics():
                self._send(messages.Metrics(tuple(_engine_metrics())))
            case messages.Close():
                self._engine.close()
                threading.Thread(target=self._end_when_closed, name="close", daemon=True).start()
            case _:
                raise TypeError(f"no message to an engine: {message!r}")

    def _submit(self, message: messages.Submit) -> None:
        stop = threading.Event()
        if message.stopped:
            stop.set()
        number = message.request
        callbacks: dict[str, Any] = {name: self._callback(message, name) for name in message.callbacks}
        if "on_checkpoint" in callbacks:
            callbacks["on_checkpoint"] = lambda part: self._later(number, lambda: self._send_part(number, part))
        request = RenderRequest(**message.fields, **callbacks, stop=stop)
        self._requests[number] = request

        def finish(future: Future[RenderResult]) -> None:
            self._requests.pop(number, None)
            finished = messages.Finished(number, _outcome(future))
            if number in self._with_parts:
                self._with_parts.discard(number)
                self._slow.put(lambda: self._send(finished))  # behind the parts
            else:
                self._send(finished)

        request.future.add_done_callback(finish)
        self._engine.submit(request)

    def _later(self, request: int, action: Callable[[], object]) -> None:
        """Let the thread that sends parts do something."""
        self._with_parts.add(request)
        self._slow.put(action)

    def _send_slowly(self) -> None:
        """Write the files of parts, for which the engine's thread has no time."""
        while True:
            action = self._slow.get()
            try:
                action()
            except Exception:
                log.exception("cannot send a checkpoint", action="checkpoint_unsent")

    def _send_part(self, number: int, part: CheckpointPart) -> None:
        file = pickle.PickleBuffer(part.to_bytes())
        stored = messages.StoredPart(part.steps, part.fresh, file)
        self._send(messages.Called(number, "on_checkpoint", (stored,)))

    def _callback(self, message: messages.Submit, name: str) -> Callable[..., None]:
        prompt = message.fields["spec"].prompt

        def call(*arguments: Any) -> None:
            if name == "on_step":
                failpoints.at("engine_mid_denoise", prompt)
            self._send(messages.Called(message.request, name, arguments))

        return call

    def _describe(self, found: Future[Any]) -> None:
        outcome = _outcome(found)
        if not isinstance(outcome, BaseException):
            device_metrics.register(outcome)
        self._send(messages.Described(outcome))

    def _tell_status(self) -> None:
        while not self._closing.wait(STATUS_SECONDS):
            self.tell_status()

    def tell_status(self) -> None:
        """Send the engine's state."""
        engine = self._engine
        status = messages.Status(engine.waiting, engine.loaded, engine.loading, engine.seconds_without_progress)
        self._send(status)

    def _lose_device(self) -> None:
        """The engine has failed all its jobs; destructors would use the device."""
        self._send(messages.DeviceLost())
        os._exit(EXIT_ENGINE_FAILED)

    def _end_when_closed(self) -> None:
        self._engine.join()
        os._exit(0)

    def _send(self, message: object) -> None:
        with suppress(OSError):  # the worker is gone, and the next `receive` says so
            self._channel.send(message)


def _engine_metrics() -> list[Any]:
    names = {name for one in metrics.ENGINE_METRICS for name in metrics.names_of(one)}
    return [family for family in REGISTRY.collect() if family.name in names]


def _outcome(future: Future[Any]) -> Any:
    """The result, or the error in a form that the worker can read without the engine's libraries."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, FarmError) or type(error).__module__ == "builtins":
        with suppress(Exception):
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
            return error
    return messages.ForeignError(type(error).__name__, str(error))


def end_with_parent() -> None:
    """Let the kernel kill this process when the one that started it ends, also when a forward hangs in a driver."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Run the engine's process."""
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group: the worker decides when the engine ends
        signal.signal(number, signal.SIG_IGN)
    configure(settings(), "worker")
    EngineChild(Channel(socket.socket(fileno=int(sys.argv[1])))).run()


if __name__ == "__main__":
    main()
