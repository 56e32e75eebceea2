"""Child processes: start, watch, stop, and find again after a crash."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from farm.errors import SetupError
from farm.local.state import Identity


def _always() -> bool:
    return True


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Program:
    """How to run one part of the farm."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]  #: the whole environment of the process
    directory: Path | None = None  #: its working directory; None: the supervisor's
    user: int | None = None  #: uid and gid to change to; None: ours
    own_log: bool = True  #: whether it writes to a log file of its own; else to what this process writes to
    address: str = ""  #: where it listens, or the device it owns
    #: whether what it needs is there; may raise SetupError
    may_start: Callable[[], bool] = field(default=_always, compare=False)
    needs: str = ""  #: what ``may_start`` looks for, in words
    outlived_by: str = (
        ""  #: the program that is stopped only when this one has ended, because it writes to it until then
    )
    prepare: Callable[[], None] = field(default=_nothing, compare=False)  #: before each start; may raise SetupError
    ready: Callable[[], bool] = field(default=_always, compare=False)  #: one cheap probe; never raises
    after_stop: Callable[[], None] = field(default=_nothing, compare=False)  #: after it was stopped
    essential: bool = False  #: whether the farm counts as started only when this is ready
    alive_file: Path | None = None  #: touched by the program as long as it is not frozen
    alive_seconds: float = 30.0  #: a program that has not touched it for this long is replaced
    start_seconds: float = 30.0  #: how long it may take until ``ready``
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0  #: how long it may take to end after the signal
    orphan_signal: signal.Signals = signal.SIGKILL  #: what the kernel sends it when its supervisor dies


#: Resolved before any fork: between fork and exec nothing may be looked up, imported or locked.
_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class Child:
    """One process of one program, writing straight to its log file, or to what this process writes to.

    Start it from the main thread: for the kernel the parent has died when the *thread* that forked has ended.
    """

    def __init__(self, program: Program, log: Path) -> None:
        self.program = program
        self.log = log
        supervisor = os.getpid()
        orphan_signal = int(program.orphan_signal)

        def die_with_parent() -> None:
            if _prctl is not None:
                _prctl(_PR_SET_PDEATHSIG, orphan_signal)
                if os.getppid() != supervisor:  # it died before prctl was called
                    os._exit(1)

        descriptor = _open_log(log) if program.own_log else None
        try:
            # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which stops things in order.
            self._popen = subprocess.Popen(
                program.argv,
                env=dict(program.environment),
                cwd=program.directory,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=None if descriptor is None else subprocess.STDOUT,
                start_new_session=True,
                user=program.user,
                group=program.user,
                extra_groups=[] if program.user is not None else None,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - two system calls, nothing that locks
            )
        except OSError as error:
            raise SetupError(f"{program.name} cannot be started: {error}") from error
        finally:
            if descriptor is not None:
                os.close(descriptor)
        self.pid = self._popen.pid
        self.born = time.monotonic()
        self.since = time.time()
        self.identity = Identity.of(self.pid) or Identity(self.pid, "gone")

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._popen.poll()

    def send(self, number: signal.Signals) -> None:
        """Signal the process itself, if it still runs."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL the process and whatever it started in its session, and reap it."""
        kill_session(self.pid)
        self._popen.kill()
        self._popen.wait()


def _open_log(log: Path) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    return os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)


def kill_session(leader: int) -> None:
    """SIGKILL the process group that this child of ours leads."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def stop(children: Sequence[Child], *, hurry: Callable[[], bool] = lambda: False) -> list[str]:
    """Stop children together: each gets its own signal and its own time, then SIGKILL. Returns who had to be killed.

    One that others write to until they have ended is asked when they have. ``hurry`` is asked while waiting; when it
    says True, the rest is killed at once.
    """
    running = [child for child in children if child.exit_code() is None]
    asked: dict[Child, float] = {}
    killed = []
    while running:
        needed = {child.program.outlived_by for child in running}
        for child in list(running):
            if child not in asked and child.program.name not in needed:
                asked[child] = time.monotonic()
                child.send(child.program.stop_signal)
            if child.exit_code() is not None:
                running.remove(child)
            elif hurry() or time.monotonic() - asked.get(child, math.inf) > child.program.stop_seconds:
                killed.append(child.program.name)
                child.kill()
                running.remove(child)
        if running:
            time.sleep(0.02)
    for child in children:
        kill_session(child.pid)  # what a service forked and did not wait for
        child.program.after_stop()
    return killed


def clean_up(leftovers: Iterable[Identity], *, grace_seconds: float = 10.0) -> list[int]:
    """End the processes of a run whose supervisor died, and their children. Returns the pids that were still alive.

    They get SIGTERM and ``grace_seconds``, then SIGKILL. A pid that another program was given since is left alone.
    """
    found: dict[int, Identity] = {}
    sessions: set[int] = set()
    for leader in leftovers:
        sessions.add(leader.pid)
        if leader.alive():
            found[leader.pid] = leader
        elif Identity.of(leader.pid) is not None:
            sessions.discard(leader.pid)  # reused by a stranger
    for pid in psutil.pids():
        try:
            if os.getsid(pid) in sessions and pid not in found:
                identity = Identity.of(pid)
                if identity is not None:
                    found[pid] = identity
        except (ProcessLookupError, PermissionError):
            continue
    for number, wait in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
        alive = [identity for identity in found.values() if identity.alive()]
        for identity in alive:
            try:
                os.kill(identity.pid, number)
            except (ProcessLookupError, PermissionError):
                continue
        deadline = time.monotonic() + wait
        while any(identity.alive() for identity in alive) and time.monotonic() < deadline:
            time.sleep(0.02)
    return sorted(found)
