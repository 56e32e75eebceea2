"""What the embedded S3 server has answered survives SIGKILL and a power cut."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from farm.errors import NotFound, StorageUnavailable
from farm.local import ports, volumes
from farm.local import servers as local
from farm.local.bootstrap import prepare_storage
from farm.local.ports import PortReservations
from farm.local.process_manager import ProcessManager, RestartBackoff
from farm.local.state import DataDirectory
from farm.objects.storage import Storage
from farm.settings import Settings
from tests import power_cut
from tests.conftest import TestServers
from tests.waiting import wait_until


@dataclass
class StorageFarm:
    """PostgreSQL and the S3 server of one data directory."""

    directory: DataDirectory
    manager: ProcessManager
    storage: Storage

    @property
    def pid(self) -> int:
        """Of the S3 server."""
        (found,) = [part.identity for part in self.manager.parts() if part.name == "s3"]
        assert found is not None
        return found.pid

    def put(self, count: int, size: int = 50_000) -> dict[str, bytes]:
        bodies = {f"outputs/{number}/0.png": os.urandom(size) for number in range(count)}
        for key, body in bodies.items():
            self.storage.put(key, body, "image/png")
        return bodies

    def lost(self, bodies: dict[str, bytes]) -> list[str]:
        """Which of the objects are not there, or are others."""
        missing = []
        for key, body in bodies.items():
            try:
                same = self.storage.get(key) == body
            except (NotFound, StorageUnavailable):
                same = False
            if not same:
                missing.append(key)
        return missing

    def restart(self) -> float:
        """Start the S3 server again after its end; returns the seconds until it takes an object."""
        began = time.monotonic()

        def takes_an_object() -> bool:
            self.manager.watch()
            with contextlib.suppress(StorageUnavailable):
                self.storage.put("probe", b"x" * 50_000, "image/png")
                return True
            return False

        wait_until(takes_an_object, 60, what="the storage takes an object")
        return time.monotonic() - began


@contextlib.contextmanager
def storage_farm(path: Path, *, prefix: tuple[str, ...] = ()) -> Iterator[StorageFarm]:
    """Both servers, the S3 server started by ``prefix``."""
    directory = DataDirectory(path)
    directory.create()
    with PortReservations() as reservations, contextlib.ExitStack() as stack:
        identity = local.prepare(directory, reservations)
        found = local.Servers.of(directory, identity, Settings())
        assert found.s3 is not None
        programs = [
            replace(program, argv=(*prefix, *program.argv)) if program.name == "s3" else program
            for program in found.programs()
        ]
        manager = ProcessManager(programs, directory, backoff=RestartBackoff(first=0.1, most=0.1))
        stack.callback(manager.stop)
        manager.start()
        manager.wait_ready()
        values = {name.removeprefix("FARM_").lower(): value for name, value in found.addresses.environment().items()}
        storage = Storage(Settings.model_validate(values))
        stack.callback(storage.close)
        prepare_storage(storage)
        yield StorageFarm(directory, manager, storage)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace counts the calls")
def test_each_object_is_synced_before_its_put_is_answered(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", str(trace))
    with storage_farm(tmp_path / "farm", prefix=strace) as farm:

        def synced() -> int:
            return len(re.findall(r"sync\(\d+<[^>]*/farm_\d+\.dat>", trace.read_text()))

        for number in range(20):
            before = synced()
            farm.storage.put(f"outputs/{number}", os.urandom(50_000), "image/png")
            assert synced() > before, number


def test_the_storage_is_back_within_seconds_of_a_sigkill_with_all_that_it_took(tmp_path: Path) -> None:
    with storage_farm(tmp_path) as farm:
        bodies = farm.put(20)
        os.kill(farm.pid, signal.SIGKILL)
        seconds = farm.restart()
        assert farm.lost(bodies) == []
    # 2 s alone on this machine; 20 s for a server that elects itself anew as the leader of nobody else
    assert seconds < 12, seconds


def test_a_power_cut_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    if not power_cut.allowed(tmp_path):
        pytest.skip("a disk of its own needs root and loop devices")
    disk = power_cut.Disk(tmp_path / "disk", tmp_path / "farm" / "s3")
    try:
        with storage_farm(tmp_path / "farm") as farm:
            bodies = farm.put(30)
            process = psutil.Process(farm.pid)
            disk.cut_power()
            os.kill(process.pid, signal.SIGKILL)
            wait_until(
                lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 10, what="it ended"
            )
            disk.restore()
            farm.restart()
            assert farm.lost(bodies) == []
            assert farm.lost(farm.put(10)) == []  # and its volumes are not read-only
    finally:
        disk.close()


@pytest.mark.parametrize("torn", [b"", b"\0" * 4096, bytes(range(1, 41)), b"\1" * 7])
def test_what_follows_the_last_whole_object_of_a_volume_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    whole = bytes(6) + b"\0\0"
    for size in (5, 4, 1_000, 0):  # one of them fills its last 8 bytes
        used = 16 + size + 12
        whole += b"\0\0\0\7" + size.to_bytes(8) + size.to_bytes(4) + b"d" * size + bytes(12) + bytes(8 - used % 8)
    whole += b"\0\0\0\7" + (9).to_bytes(8) + (2**32 - 1).to_bytes(4) + bytes(12) + bytes(4)  # a deletion
    volume = tmp_path / "farm_1.dat"
    volume.write_bytes(whole + torn)
    assert volumes.cut_torn_end(volume) == len(torn)
    assert volume.read_bytes() == whole


def test_volumes_are_repaired_once_after_a_boot(tmp_path: Path) -> None:
    (tmp_path / "farm_1.dat").write_bytes(bytes(8))
    repaired: list[int] = []
    assert volumes.repair_after_boot(tmp_path, lambda: repaired.append(1))
    assert not volumes.repair_after_boot(tmp_path, lambda: repaired.append(2))
    (tmp_path / "boot").write_text("another")
    assert volumes.repair_after_boot(tmp_path, lambda: repaired.append(3))
    assert repaired == [1, 3]


def test_of_the_storage_of_containers_only_the_s3_port_listens_beyond_loopback(
    tmp_path: Path, servers: TestServers, database_url: str
) -> None:
    with PortReservations() as reservations:
        port = ports.choose(reservations=reservations)
    keys = {"FARM_S3_ACCESS_KEY": "key", "FARM_S3_SECRET_KEY": "secret", "FARM_DATABASE_URL": database_url}
    command = [sys.executable, "-m", "farm.cli", "storage", "--data-dir", str(tmp_path), "--host", "0.0.0.0"]
    with subprocess.Popen([*command, "--port", str(port)], env={**os.environ, **keys}) as process:
        try:
            given = {"s3_endpoint_url": f"http://127.0.0.1:{port}", "s3_access_key": "key", "s3_secret_key": "secret"}
            storage = Storage(Settings.model_validate(given))
            prepare_storage(storage, grace_seconds=60)
            storage.put("outputs/0", b"image", "image/png")
            assert storage.get("outputs/0") == b"image"
            storage.close()
            listening: set[tuple[str, int]] = set()
            for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):  # a short command of the storage's own may have ended
                    found = one.net_connections("tcp")
                    listening |= {connection.laddr for connection in found if connection.status == psutil.CONN_LISTEN}
            assert len(listening) > 8  # SeaweedFS' own servers
            assert {(ip, number) for ip, number in listening if ip != "127.0.0.1"} == {("0.0.0.0", port)}
        finally:
            process.terminate()
            assert process.wait(30) == 0
    servers.postgres.drop_database(f"{database_url.rpartition('/')[2]}_objects")
