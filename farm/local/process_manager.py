"""Process manager: starts a set of programs, restarts those that end, stops them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from farm.errors import SetupError
from farm.local import process
from farm.local.logs import mark, rotate
from farm.local.process import Child, Program
from farm.local.state import DataDirectory, Part

_NEEDS_SECONDS = 90.0  #: how long a program may wait for what it needs: PostgreSQL's first start and recovery
LOOK_SECONDS: Final = 5.0  #: between two looks at the processes, at most; longer, and this process was stopped itself


@dataclass(frozen=True)
class RestartBackoff:
    """How long to wait before a program that died is started again, in seconds."""

    first: float = 1.0
    most: float = 30.0
    forget_after: float = 60.0  #: after this uptime the count of failures starts anew

    def delay(self, deaths: int) -> float:
        """The pause after so many deaths in a row."""
        return float(min(self.first * 2 ** min(deaths - 1, 16), self.most))


class StartFailed(SetupError):
    """A part of the farm died while it started, or did not become ready in time."""

    def __init__(self, part: str, how: str) -> None:
        self.part = part
        super().__init__(f"{part} {how}")


class _ManagedProcess:
    """One program with its process and restart state."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.child: Child | None = None
        self.restarts = 0
        self.deaths = 0  # in a row
        self.due = 0.0  # when to start it (again), on the monotonic clock
        self.started_once = False
        self._touched = 0.0  # the alive file's time, as last seen, by the wall clock
        self._touched_at = 0.0  # when that was seen to change, on the monotonic clock
        self._looked_at = 0.0  # the last look at it, on the monotonic clock

    def frozen(self, now: float) -> bool:
        """Whether the process runs and has stopped touching its alive file; ``now`` is on the monotonic clock.

        Only what this process sees counts: one that was stopped itself, together with all others, begins anew.
        """
        if self.program.alive_file is None:
            return False
        looked_away = now - self._looked_at > LOOK_SECONDS
        self._looked_at = now
        try:
            touched = self.program.alive_file.stat().st_mtime
        except OSError:
            return False  # it has not begun
        if touched != self._touched or looked_away:
            self._touched, self._touched_at = touched, now
        return now - self._touched_at > self.program.alive_seconds


class ProcessManager:
    """The programs of one tier, in the order in which they start. All methods belong to the main thread."""

    def __init__(
        self,
        programs: Iterable[Program],
        directory: DataDirectory,
        *,
        backoff: RestartBackoff | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._processes = [_ManagedProcess(program) for program in programs]
        self._directory = directory
        self._backoff = backoff or RestartBackoff()
        self._report = report

    def start(self) -> None:
        """Start every program that may start; does not wait for any to be ready.

        `wait_ready` and `watch` start the others. Raises SetupError; those started keep running.
        """
        for managed in self._processes:
            if managed.program.may_start():
                self._start(managed)

    def wait_ready(self, *, canceled: Callable[[], bool] = lambda: False) -> None:
        """Wait until each is ready, or ``canceled`` says True. Raises StartFailed when one dies or takes too long."""
        waiting = list(self._processes)
        began = time.monotonic()
        while waiting and not canceled():
            for managed in list(waiting):
                child = managed.child
                if child is None and not managed.started_once:
                    if managed.program.may_start():
                        self._start(managed)
                    elif time.monotonic() - began > _NEEDS_SECONDS:
                        raise StartFailed(
                            managed.program.name, f"waited {_NEEDS_SECONDS:.0f} s for {managed.program.needs}"
                        )
                    continue
                code = None if child is None else child.exit_code()
                if child is None or code is not None:
                    raise StartFailed(managed.program.name, f"{_ending(code)} while it started")
                if managed.program.ready():
                    waiting.remove(managed)
                elif time.monotonic() - child.born > managed.program.start_seconds:
                    raise StartFailed(
                        managed.program.name, f"did not become ready within {managed.program.start_seconds:.0f} s"
                    )
            if waiting:
                time.sleep(0.02)

    def essentials_ready(self) -> bool:
        """Whether each essential one runs and is ready now."""
        return all(
            managed.child is not None and managed.child.exit_code() is None and managed.program.ready()
            for managed in self._processes
            if managed.program.essential
        )

    def crash_looping(self, deaths: int) -> str | None:
        """The name of an essential one that has died so often in a row, if there is any."""
        for managed in self._processes:
            if managed.program.essential and managed.deaths >= deaths:
                return managed.program.name
        return None

    def all_crash_looping(self, deaths: int) -> bool:
        """Whether each of them has died so often in a row."""
        return all(managed.deaths >= deaths for managed in self._processes)

    def running(self) -> list[Child]:
        """Those that have not ended."""
        children = (managed.child for managed in self._processes)
        return [child for child in children if child is not None and child.exit_code() is None]

    def send(self, number: signal.Signals) -> None:
        """Signal those that run."""
        for child in self.running():
            child.send(number)

    def watch(self) -> bool:
        """Check once: record ended processes, restart those that are due. Returns whether anything changed."""
        changed = False
        now = time.monotonic()
        for managed in self._processes:
            if managed.child is not None:
                code = managed.child.exit_code()
                if code is None and managed.frozen(now):
                    self._report(f"{managed.program.name} is frozen: killing it")
                    managed.child.kill()
                    code = managed.child.exit_code()
                if code is None:
                    if managed.deaths and now - managed.child.born > self._backoff.forget_after:
                        managed.deaths = 0
                    continue
                if now - managed.child.born > self._backoff.forget_after:
                    managed.deaths = 0
                process.kill_session(managed.child.pid)  # its own children must not outlive it
                managed.child = None
                self._schedule_restart(managed, _ending(code))
                changed = True
            elif now >= managed.due:
                try:
                    if not managed.program.may_start():
                        continue
                    changed = True
                    managed.restarts += int(managed.started_once)
                    self._start(managed)
                except SetupError as error:
                    changed = True
                    self._schedule_restart(managed, f"cannot start ({error})")
        return changed

    def stop(self, *, hurry: Callable[[], bool] = lambda: False) -> list[str]:
        """Stop all and wait for their end. Returns the names of those that had to be killed."""
        children = [managed.child for managed in reversed(self._processes) if managed.child is not None]
        killed = process.stop(children, hurry=hurry)
        for managed in self._processes:
            managed.child = None
        return killed

    def parts(self) -> tuple[Part, ...]:
        """What is known about each."""
        return tuple(
            Part(
                managed.program.name,
                managed.program.address,
                identity=managed.child.identity if managed.child else None,
                since=managed.child.since if managed.child else 0.0,
                restarts=managed.restarts,
            )
            for managed in self._processes
        )

    def _start(self, managed: _ManagedProcess) -> None:
        log = self._directory.log(managed.program.name)
        if managed.program.own_log:
            rotate(log)
            mark(log)
        managed.program.prepare()
        if managed.program.alive_file is not None:
            managed.program.alive_file.unlink(missing_ok=True)
        managed.child = Child(managed.program, log)
        managed.started_once = True

    def _schedule_restart(self, managed: _ManagedProcess, how: str) -> None:
        managed.deaths += 1
        pause = self._backoff.delay(managed.deaths)
        managed.due = time.monotonic() + pause
        self._report(f"{managed.program.name} {how}; restarting in {pause:g} s")


def _ending(code: int | None) -> str:
    if code is None:
        return "could not be started"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
