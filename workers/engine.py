"""The engine: the one thread that owns the device. Jobs go in as work and come out as images.

The jobs in its slots share forwards step by step (`workers.batched_renderer`); a job for which a person waits needs
no free slot. A job that was on the device when a worker died is a suspect: it gets the device for itself, and no
other job begins until it has left the process, so that a second death is its own and no neighbour's.

A dead engine would leave every job waiting for ever, so its death ends the process; the leases bring the jobs back.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from farm.domain.states import Priority
from farm.domain.worker import Device, ResidentModel
from farm.errors import JobCanceled, RenderError
from workers import device as devices
from workers.device import NO_UPKEEP, Choice, Upkeep
from workers.render_request import Rendered, RenderWork

if TYPE_CHECKING:
    from workers.batched_renderer import SharedRenderer

log = structlog.stdlib.get_logger()

EXIT_ENGINE_DIED: Final = 70  #: EX_SOFTWARE of sysexits.h


class Engine(threading.Thread):
    """Owns the device from start to end."""

    def __init__(
        self,
        choice: Choice,
        torch_threads: int,
        slots: int = 1,
        most_rows: int = 16,
        lessons_dir: Path | None = None,
        upkeep: Upkeep = NO_UPKEEP,
    ) -> None:
        """``slots``: jobs on the device at once; ``most_rows``: of one shared forward, where no memory is measured.

        ``lessons_dir``: where what was learnt about sharing is kept, see `workers.batch_profiles`.
        """
        super().__init__(name="engine", daemon=True)
        self._choice = choice
        self._torch_threads = torch_threads
        self._slots = slots
        self._most_rows = most_rows
        self._lessons_dir = lessons_dir
        self._upkeep = upkeep
        self._waiting: deque[RenderWork] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._busy = False
        self._begun: set[RenderWork] = set()  # taken up, and not left the process yet
        self._renderer: SharedRenderer | None = None
        self.loading = True  #: whether a model, or torch itself, is being loaded
        self.moved_at = time.monotonic()  #: when it last got further: a step, a phase of loading, a change of job
        self.device: Future[Device] = Future()  #: known once torch has looked

    # -- from other threads -------------------------------------------------------------------------------------------

    def submit(self, work: RenderWork) -> Future[Rendered]:
        """Queue work for the device. The future fails with `RenderError` or whatever the pipeline raised."""
        with self._wake:
            if not self._waiting and not self._busy:
                self._move()  # an idle engine has not stalled
            self._waiting.append(work)
            self._wake.notify()
        return work.future

    def withdraw(self, work: RenderWork) -> bool:
        """Take back work that the device has not taken up, at once; False if it has (it stops at its next step)."""
        with self._wake:
            try:
                self._waiting.remove(work)
            except ValueError:
                return False
        work.future.set_exception(JobCanceled("the job was stopped before the device took it up"))
        return True

    def leave(self, owner: Hashable) -> None:
        """That owner's job has left the process, whatever became of it."""
        with self._wake:
            self._begun = {work for work in self._begun if work.owner != owner}
            self._wake.notify()

    @property
    def models(self) -> tuple[str, ...]:
        """The ids of the models in memory."""
        return () if self._renderer is None else self._renderer.models

    @property
    def loaded(self) -> tuple[ResidentModel, ...]:
        """What is known of those models."""
        return () if self._renderer is None else self._renderer.loaded

    @property
    def idle_seconds(self) -> float:
        """For how long it has not got further with what it has to do; 0 with nothing to do."""
        with self._wake:
            if not self._busy and not self.loading and (not self._waiting or self._held_up()):
                return 0.0
            return time.monotonic() - self.moved_at

    def close(self) -> None:
        """End after the work at hand."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    # -- its own thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Look at the device, then render until closed."""
        try:
            if self._upkeep.compile_dir is not None:  # torch reads it when it compiles, and keeps kernels there
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self._upkeep.compile_dir.absolute())
            try:
                device = devices.describe(self._choice)
            except BaseException as error:  # noqa: BLE001 - handed on, not swallowed
                self.device.set_exception(error)
                return  # whoever waits for the device says what is wrong and ends the process
            self.device.set_result(device)
            self._move()
            self._render_until_closed(device)
        except BaseException:
            log.critical("the engine died", action="engine_died", exc_info=True)
            os._exit(EXIT_ENGINE_DIED)

    def _render_until_closed(self, device: Device) -> None:
        from workers.batched_renderer import SharedRenderer  # noqa: PLC0415 - seconds of imports, after pinning

        renderer = SharedRenderer(
            device, self._torch_threads, self._move, self._most_rows, self._lessons_dir, self._upkeep
        )
        self._renderer = renderer
        self._move()
        self.loading = False
        while self._wait(renderer):
            while (work := self._pick(renderer)) is not None:
                self._admit(work, renderer)
            for ended, outcome in renderer.advance():
                self._deliver(ended, outcome)

    def _wait(self, renderer: SharedRenderer) -> bool:
        """Wait for something to do; False once closed with nothing left on the device."""
        with self._wake:
            if not renderer.active:
                self._busy = False
                self._wake.wait_for(lambda: self._next(renderer) is not None or self._closing)
                if self._closing:
                    return False
                self._busy = True
                self._move()
            return True

    def _pick(self, renderer: SharedRenderer) -> RenderWork | None:
        """The waiting job that may begin now: those of a waiting person first, then first come first served."""
        with self._wake:
            first = None if self._closing else self._next(renderer)
            if first is not None:
                self._waiting.remove(first)
            return first

    def _next(self, renderer: SharedRenderer) -> RenderWork | None:
        if not self._waiting:
            return None
        first = max(self._waiting, key=lambda work: work.priority is Priority.INTERACTIVE)
        if self._held_up():
            return None
        if not renderer.takes(first.model):
            renderer.fetch(first.model)
            return None
        full = renderer.active >= self._slots and first.priority is not Priority.INTERACTIVE
        return None if full else first

    def _held_up(self) -> bool:
        """Whether the device stays empty until what began has left the process, because one of them is a suspect."""
        first = max(self._waiting, key=lambda work: work.priority is Priority.INTERACTIVE, default=None)
        return bool(self._begun) and (
            any(work.suspect for work in self._begun) or (first is not None and first.suspect)
        )

    def _admit(self, work: RenderWork, renderer: SharedRenderer) -> None:
        if work.stop.is_set():
            work.future.set_exception(JobCanceled("the job was stopped before the device took it up"))
            return
        with self._wake:
            self._begun.add(work)
        work.on_take_up()
        self.loading = not renderer.holds(work.model)
        self._move()
        try:
            renderer.admit(work)
        except Exception as error:  # noqa: BLE001 - told to whoever waits for it
            self._deliver(work, error)
        finally:
            self._move()
            self.loading = False

    def _deliver(self, work: RenderWork, outcome: Rendered | BaseException) -> None:
        if isinstance(outcome, Rendered):
            work.future.set_result(outcome)
            return
        if not isinstance(outcome, RenderError):
            log.error("rendering failed", action="render_failed", model=work.model.id, exc_info=outcome)
        _let_go(outcome)
        work.future.set_exception(outcome)

    def _move(self) -> None:
        self.moved_at = time.monotonic()


def _let_go(error: BaseException) -> None:
    """Drop the frames of a failed run: they hold its tensors, which must not live as long as the error does."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
