"""Encoded outputs that wait on the worker's disk while the object storage does not answer, so that memory stays free.

Nothing here outlives its lease. The next process of the same worker deletes what an earlier one left: its jobs were
requeued.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from farm.domain.job import HeldJob

log = structlog.stdlib.get_logger()


class UploadSpool:
    """The spool directory of one worker. Safe to share between threads, each with a job of its own."""

    def __init__(self, directory: Path) -> None:
        """Empties ``directory``."""
        self._directory = directory
        shutil.rmtree(directory, ignore_errors=True)

    def add(self, held: HeldJob, index: int, body: bytes) -> Callable[[], bytes]:
        """Spool the file of output ``index``; returns a function that reads it.

        The file stays in memory if the disk does not take it.
        """
        path = self._job_directory(held) / str(index)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        except OSError as error:
            log.warning("cannot spool an output, keeping it in memory", action="spool_failed", error=str(error))
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return lambda: body
        return path.read_bytes

    def clear(self, held: HeldJob) -> None:
        """Delete the spooled files of a job."""
        shutil.rmtree(self._job_directory(held), ignore_errors=True)

    def _job_directory(self, held: HeldJob) -> Path:
        return self._directory / f"{held.job_id}.{held.epoch}"
