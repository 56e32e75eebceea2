"""Keeping processes: started again with growing pauses, stopped whole, never mistaken for strangers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from farm.local import logs
from farm.local.process import Program, clean_up
from farm.local.process_manager import ProcessManager, RestartBackoff, StartFailed
from farm.local.state import DataDirectory, Identity
from tests.waiting import wait_until


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    made = DataDirectory(tmp_path / "farm")
    made.create()
    return made


def program(name: str, code: str, **more: Any) -> Program:
    return Program(name, (sys.executable, "-S", "-c", code), dict(os.environ), **more)


SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def keep(directory: DataDirectory) -> Iterator[Callable[..., ProcessManager]]:
    made: list[ProcessManager] = []

    def build(*programs: Program, backoff: RestartBackoff | None = None) -> ProcessManager:
        manager = ProcessManager(
            programs, directory, backoff=backoff or RestartBackoff(first=0.05, most=0.2, forget_after=60)
        )
        made.append(manager)
        return manager

    yield build
    for manager in made:
        manager.stop(hurry=lambda: True)


def pid_of(manager: ProcessManager) -> int | None:
    identity = manager.parts()[0].identity
    return identity.pid if identity else None


def test_a_service_that_dies_is_started_again(keep: Callable[..., ProcessManager]) -> None:
    manager = keep(program("one", SLEEP))
    manager.start()
    first = pid_of(manager)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: (manager.watch(), pid_of(manager))[1] not in {None, first})
    assert manager.parts()[0].restarts == 1


def test_a_frozen_program_is_replaced(keep: Callable[..., ProcessManager], tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    touching = f"import pathlib, time\nwhile True: pathlib.Path({str(alive)!r}).touch(); time.sleep(0.1)"
    manager = keep(program("one", touching, alive_file=alive, alive_seconds=1.5))
    manager.start()
    first = pid_of(manager)
    assert first is not None
    wait_until(alive.exists)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:  # it is left alone as long as it moves
        assert not manager.watch()
        time.sleep(0.1)
    os.kill(first, signal.SIGSTOP)
    wait_until(lambda: (manager.watch(), pid_of(manager))[1] not in {None, first}, 20)
    assert Identity.of(first) is None


def test_a_manager_that_was_stopped_itself_does_not_take_its_programs_for_frozen(
    keep: Callable[..., ProcessManager], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.local.process_manager.LOOK_SECONDS", 0.5)
    alive = tmp_path / "alive"
    touching = f"import pathlib, time\npathlib.Path({str(alive)!r}).touch(); time.sleep(600)"
    manager = keep(program("one", touching, alive_file=alive, alive_seconds=1.0))
    manager.start()
    wait_until(alive.exists)
    manager.watch()
    time.sleep(2)  # stopped, and its program with it
    assert not manager.watch()


def test_the_pauses_between_restarts_grow_up_to_a_limit() -> None:
    backoff = RestartBackoff()
    assert [backoff.delay(deaths) for deaths in (1, 2, 3, 4, 5, 6, 7, 100)] == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_service_that_keeps_dying_waits_longer_each_time(directory: DataDirectory) -> None:
    said: list[str] = []
    manager = ProcessManager(
        [program("dies", "raise SystemExit(7)")],
        directory,
        backoff=RestartBackoff(first=0.02, most=0.08, forget_after=60),
        report=said.append,
    )
    manager.start()
    wait_until(lambda: (manager.watch(), len(said) >= 4)[1])
    manager.stop()
    assert [line.rpartition(" in ")[2] for line in said[:4]] == ["0.02 s", "0.04 s", "0.08 s", "0.08 s"]
    assert all("exit code 7" in line for line in said)


def test_a_service_that_lived_long_starts_with_the_first_pause_again(directory: DataDirectory) -> None:
    said: list[str] = []
    manager = ProcessManager(
        [program("lives", "import time; time.sleep(0.4)")],
        directory,
        backoff=RestartBackoff(first=0.02, most=10, forget_after=0.3),
        report=said.append,
    )
    manager.start()
    wait_until(lambda: (manager.watch(), len(said) >= 2)[1])
    manager.stop()
    assert all(line.endswith("in 0.02 s") for line in said)


def test_a_service_that_ignores_its_signal_is_killed_after_its_time(keep: Callable[..., ProcessManager]) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    manager = keep(program("deaf", stubborn, stop_seconds=0.3))
    manager.start()
    log = manager._directory.log("deaf")
    wait_until(lambda: "deaf" in logs.latest(log))
    pid = pid_of(manager)
    assert manager.stop() == ["deaf"]
    assert not psutil.pid_exists(pid or 0)


def test_what_a_program_writes_to_is_stopped_after_it(keep: Callable[..., ProcessManager], tmp_path: Path) -> None:
    """A storage whose index is in a database would wait for the database, and be killed after its time."""
    database = f"""
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path({str(tmp_path / "database")!r}).write_text(str(time.monotonic())); sys.exit()
signal.signal(15, end); print('ready', flush=True); time.sleep(600)"""
    storage = f"""
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.5)
    pathlib.Path({str(tmp_path / "storage")!r}).write_text(str(time.monotonic())); sys.exit()
signal.signal(15, end); print('ready', flush=True); time.sleep(600)"""
    manager = keep(program("database", database), program("storage", storage, outlived_by="database"))
    manager.start()
    for name in ("database", "storage"):
        log = manager._directory.log(name)
        wait_until(lambda log=log: "ready" in logs.latest(log))  # type: ignore[misc]
    assert manager.stop() == []
    assert float((tmp_path / "storage").read_text()) < float((tmp_path / "database").read_text())


def test_what_a_service_has_forked_ends_with_it(keep: Callable[..., ProcessManager]) -> None:
    forks = "import subprocess, time; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); time.sleep(600)"
    manager = keep(program("forks", forks))
    manager.start()
    log = manager._directory.log("forks")
    grandchild = int(wait_until(lambda: logs.latest(log))[0])
    manager.stop()
    wait_until(lambda: Identity.of(grandchild) is None)


def test_a_service_that_cannot_start_names_itself(keep: Callable[..., ProcessManager]) -> None:
    manager = keep(program("broken", "raise SystemExit('no such device')", ready=lambda: False))
    manager.start()
    with pytest.raises(StartFailed, match="broken ended with exit code 1") as caught:
        manager.wait_ready()
    assert caught.value.part == "broken"
    assert logs.latest(manager._directory.log("broken")) == ["no such device"]


def test_services_die_with_their_supervisor_however_it_dies(tmp_path: Path) -> None:
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import os, sys, time; from pathlib import Path\n"
                "from farm.local.process_manager import ProcessManager; from farm.local.process import Program\n"
                "from farm.local.state import DataDirectory\n"
                f"directory = DataDirectory(Path({str(tmp_path)!r})); directory.create()\n"
                "manager = ProcessManager([Program('one', ('sleep', '600'), dict(os.environ))], directory)\n"
                "manager.start()\n"
                "print(manager.parts()[0].identity.pid, flush=True); time.sleep(600)"
            ),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with supervisor:
        assert supervisor.stdout is not None
        service = int(supervisor.stdout.readline())
        supervisor.kill()
    wait_until(lambda: Identity.of(service) is None)


def test_a_reused_pid_is_not_taken_for_ours() -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        before = Identity(stranger.pid, "another boot:1")
        assert not before.alive()
        assert clean_up([before]) == []
        assert stranger.poll() is None
        stranger.kill()


def test_leftovers_are_ended_with_the_children_of_a_leader_that_is_gone() -> None:
    leader = subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with leader:
        assert leader.stdout is not None
        orphan = int(leader.stdout.readline())
        identity = Identity.of(leader.pid)
        assert identity is not None
        leader.kill()
    assert clean_up([identity]) == [orphan]
    assert Identity.of(orphan) is None


def test_only_one_process_holds_a_data_directory(directory: DataDirectory) -> None:
    with directory.locked() as first, directory.locked() as second:
        assert (first, second) == (True, False)
    with directory.locked() as again:
        assert again


def test_a_follower_shows_whole_lines_and_survives_a_cut(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    log.write_text("old\n")
    shown: list[str] = []
    follower = logs.Follower(lambda part, line: shown.append(f"{part}: {line}"), every=0.01)
    follower.follow({"one": log})
    with log.open("a") as stream:
        stream.write("first\nsec")
        stream.flush()
        wait_until(lambda: shown == ["one: first"])
        stream.write("ond\n")
        stream.flush()
        wait_until(lambda: shown == ["one: first", "one: second"])
        logs.cut(log, limit=1)
        wait_until(lambda: follower._read[log] == 0)
        stream.write("third\n")
    follower.stop()
    assert shown == ["one: first", "one: second", "one: third"]
    assert log.with_name("one.log.1").read_text() == "old\nfirst\nsecond\n"


def test_a_long_log_is_put_aside_before_its_part_starts(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    for content in ("a" * 20, "b" * 20, "c" * 20, "d" * 20, "e" * 20):
        log.write_text(content)
        logs.rotate(log, limit=10)
    managed = [log.with_name(f"one.log.{age}").read_text()[0] for age in (1, 2, 3)]
    assert managed == ["e", "d", "c"]
    assert not log.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.log.1", "one.log.2", "one.log.3"]


def test_secrets_are_for_the_owner_alone(directory: DataDirectory) -> None:
    directory.save_farm(directory.farm().with_secrets("postgres"))
    assert (directory.path / "farm.json").stat().st_mode & 0o777 == 0o600
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert directory.farm().secret("postgres") == directory.farm().with_secrets("postgres").secret("postgres")
