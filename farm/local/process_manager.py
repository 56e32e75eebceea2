"""Keeps a set of programs running: starts them, starts them again when they die, stops them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from farm.errors import SetupError
from farm.local import process
from farm.local.logs import mark, rotate
from farm.local.process import Child, Program
from farm.local.state import DataDirectory, Part


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a program that died is started again, in seconds."""

    first: float = 1.0
    most: float = 30.0
    forget_after: float = 60.0  #: a program that has lived this long has earned a fresh start

    def delay(self, deaths: int) -> float:
        """The pause after so many deaths in a row."""
        return float(min(self.first * 2 ** min(deaths - 1, 16), self.most))


class StartFailed(SetupError):
    """A part of the farm died while it started, or did not become ready in time."""

    def __init__(self, part: str, how: str) -> None:
        self.part = part
        super().__init__(f"{part} {how}")


class _Kept:
    """One program and what has become of it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.child: Child | None = None
        self.restarts = 0
        self.deaths = 0  # in a row
        self.due = 0.0  # when to start it again, on the monotonic clock


class Keeper:
    """The programs of one tier, in the order in which they start. All methods belong to the main thread."""

    def __init__(
        self,
        programs: Iterable[Program],
        directory: DataDirectory,
        *,
        backoff: Backoff | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._kept = [_Kept(program) for program in programs]
        self._directory = directory
        self._backoff = backoff or Backoff()
        self._report = report

    def start(self) -> None:
        """Start every program; does not wait for any to be ready. Raises SetupError; those started keep running."""
        for kept in self._kept:
            self._start(kept)

    def wait_ready(self, *, canceled: Callable[[], bool] = lambda: False) -> None:
        """Wait until each is ready, or ``canceled`` says True. Raises StartFailed when one dies or takes too long."""
        waiting = list(self._kept)
        while waiting and not canceled():
            for kept in list(waiting):
                child = kept.child
                code = None if child is None else child.exit_code()
                if child is None or code is not None:
                    raise StartFailed(kept.program.name, f"{_ending(code)} while it started")
                if kept.program.ready():
                    waiting.remove(kept)
                elif time.monotonic() - child.born > kept.program.start_seconds:
                    raise StartFailed(
                        kept.program.name, f"did not become ready within {kept.program.start_seconds:.0f} s"
                    )
            if waiting:
                time.sleep(0.02)

    def essentials_ready(self) -> bool:
        """Whether each essential one runs and is ready now."""
        return all(
            kept.child is not None and kept.child.exit_code() is None and kept.program.ready()
            for kept in self._kept
            if kept.program.essential
        )

    def doomed(self, deaths: int) -> str | None:
        """The name of an essential one that has died so often in a row, if there is any."""
        for kept in self._kept:
            if kept.program.essential and kept.deaths >= deaths:
                return kept.program.name
        return None

    def watch(self) -> bool:
        """Look once: notice the dead, start those whose pause is over. Returns whether anything changed."""
        changed = False
        now = time.monotonic()
        for kept in self._kept:
            if kept.child is not None:
                code = kept.child.exit_code()
                if code is None:
                    if kept.deaths and now - kept.child.born > self._backoff.forget_after:
                        kept.deaths = 0
                    continue
                if now - kept.child.born > self._backoff.forget_after:
                    kept.deaths = 0
                process.kill_session(kept.child.pid)  # its own children must not outlive it
                kept.child = None
                self._bury(kept, _ending(code))
                changed = True
            elif now >= kept.due:
                changed = True
                kept.restarts += 1
                try:
                    self._start(kept)
                except SetupError as error:
                    self._bury(kept, f"cannot start ({error})")
        return changed

    def stop(self, *, hurry: Callable[[], bool] = lambda: False) -> list[str]:
        """Stop all and wait for their end. Returns the names of those that had to be killed."""
        children = [kept.child for kept in reversed(self._kept) if kept.child is not None]
        killed = process.stop(children, hurry=hurry)
        for kept in self._kept:
            kept.child = None
        return killed

    def parts(self) -> tuple[Part, ...]:
        """What is known about each."""
        return tuple(
            Part(
                kept.program.name,
                kept.program.address,
                identity=kept.child.identity if kept.child else None,
                since=kept.child.since if kept.child else 0.0,
                restarts=kept.restarts,
            )
            for kept in self._kept
        )

    def _start(self, kept: _Kept) -> None:
        log = self._directory.log(kept.program.name)
        rotate(log)
        mark(log)
        kept.program.prepare()
        kept.child = Child(kept.program, log)

    def _bury(self, kept: _Kept, how: str) -> None:
        kept.deaths += 1
        pause = self._backoff.delay(kept.deaths)
        kept.due = time.monotonic() + pause
        self._report(f"{kept.program.name} {how}; it starts again in {pause:g} s")


def _ending(code: int | None) -> str:
    if code is None:
        return "could not be started"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
