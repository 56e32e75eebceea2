"""SeaweedFS' volume files after a power cut.

SeaweedFS appends each object to a volume's ``.dat`` and notes its place in the ``.idx`` beside it. A durable PUT waits
for the ``.dat`` to be on the disk, never for the ``.idx``: after a power cut the index may lack entries or be empty,
and the server then does not find objects whose bytes are there. So the first start after a boot of the machine builds
the indexes anew from the data (measured: without it 50 of 50 durable objects were lost to a power cut).

The death of the process alone needs none of this: what it has written is in the kernel's memory then.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from farm.local.state import write_private

_BOOT: Final = "boot"  #: the file that names the boot in which the server last started
_SUPER_BLOCK: Final = struct.Struct(">6xH")  #: of a volume; the number says how much longer it is
_HEADER: Final = struct.Struct(">IQI")  #: of a needle, which is one object or a part of it: cookie, id, size
_FOOTER: Final = 4 + 8  #: checksum and time, behind the data
_ALIGNMENT: Final = 8
_DELETED: Final = 2**31  #: sizes from here on are negative numbers: a note that an object was deleted


def repair_after_boot(directory: Path, rebuild_indexes: Callable[[], None]) -> bool:
    """Repair the volumes in ``directory`` if the machine was booted since the last call; returns whether it was.

    Call it before the server starts. ``rebuild_indexes`` writes each ``.idx`` anew from its ``.dat``.
    """
    now = boot_id()
    recorded = directory / _BOOT
    with contextlib.suppress(FileNotFoundError):
        if recorded.read_text() == now:
            return False
    volumes = sorted(directory.glob("*.dat"))
    for volume in volumes:
        cut_torn_end(volume)
    if volumes:
        rebuild_indexes()
    write_private(recorded, now)
    return bool(volumes)


def boot_id() -> str:
    """A name of the time since this machine was booted; the same in each of its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux: repair at each start
        return os.urandom(8).hex()


def cut_torn_end(volume: Path) -> int:
    """Cut off what follows the last whole needle of a ``.dat``; returns how many bytes that were.

    Appended data that was never synced may end anywhere, or be zeros. No client has a confirmation that it is stored.
    """
    size = volume.stat().st_size
    with volume.open("r+b") as file:
        head = file.read(_SUPER_BLOCK.size)
        if len(head) < _SUPER_BLOCK.size:
            return 0
        end = _SUPER_BLOCK.size + int(_SUPER_BLOCK.unpack(head)[0])
        while end + _HEADER.size <= size:
            file.seek(end)
            cookie, needle, length = _HEADER.unpack(file.read(_HEADER.size))
            if cookie == needle == length == 0:
                break
            used = _HEADER.size + (0 if length >= _DELETED else length) + _FOOTER
            after: int = end + used + _ALIGNMENT - used % _ALIGNMENT
            if after > size:
                break
            end = after
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
    return max(0, size - end)
