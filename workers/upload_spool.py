"""Finished images that wait for a storage that is away: on the worker's disk, so that its memory is free meanwhile.

Nothing here outlives its right. What a dead process left is thrown away at the start of the next one: its jobs were
taken back.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from farm.domain.job import HeldJob

log = structlog.stdlib.get_logger()


class Shelf:
    """A folder of one worker."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)

    def keep(self, held: HeldJob, index: int, body: bytes) -> Callable[[], bytes]:
        """Put an image down; returns how to get it. It stays in memory where the disk takes nothing."""
        place = self._place(held) / str(index)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(body)
        except OSError as error:
            log.warning("a finished image stays in memory", action="shelf_full", error=str(error))
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
            return lambda: body
        return place.read_bytes

    def clear(self, held: HeldJob) -> None:
        """Throw away what was kept for a job."""
        shutil.rmtree(self._place(held), ignore_errors=True)

    def _place(self, held: HeldJob) -> Path:
        return self._folder / f"{held.job_id}.{held.epoch}"
