"""A disk of its own for one directory, from which the power can be taken: what was not synced is gone then."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path

#: Ends all I/O of a file system without writing its journal (ext4, XFS, F2FS): a power cut, as xfstests does it.
_SHUTDOWN = 0x8004587D
_WITHOUT_LOG_FLUSH = 2


class Disk:
    """An ext4 file system in a file, mounted on a directory. Needs root and loop devices."""

    def __init__(self, image: Path, directory: Path, megabytes: int = 600) -> None:
        """Raises OSError or CalledProcessError where this machine does not allow it."""
        self._image = image
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(megabytes * 2**20)
        _run("mkfs.ext4", "-q", image)
        self._mount()

    def _mount(self) -> None:
        # the journal is written when somebody syncs, and not after five seconds by itself
        _run("mount", "-o", "loop,commit=300", self._image, self._directory)

    def cut_power(self) -> None:
        """Drop what was not synced. Processes that use the disk fail from now on; end them, then call `restore`."""
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def restore(self) -> None:
        """Mount what is left, as after a boot. Forgets the boot in which a server started there."""
        self.close()
        self._mount()
        # the machine that runs the tests was not booted
        for recorded in self._directory.rglob("boot"):
            recorded.unlink()

    def close(self) -> None:
        """Unmount the disk."""
        _run("umount", "-l", self._directory)


def _run(*argv: str | Path) -> None:
    subprocess.run([str(part) for part in argv], check=True, capture_output=True)


def allowed(directory: Path) -> bool:
    """Whether this machine lets us make such a disk."""
    if os.geteuid() != 0:
        return False
    try:
        disk = Disk(directory / "probe.img", directory / "probe", 16)
        disk.cut_power()
        disk.close()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
