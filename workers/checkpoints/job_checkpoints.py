"""Decides when the work of a job on the device is kept, and from where an attempt goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import structlog

from workers.checkpoints.part_format import InvalidPart
from workers.checkpoints.record import JobRecord, Moment, RecordMismatch, fingerprint_of
from workers.render_request import RenderRequest

log = structlog.stdlib.get_logger()

MAX_PENDING_BYTES: Final = 64 * 2**20  #: of one job's record on the device: more are kept at once
#: What decides no call of a denoiser.
_NOT_RENDERED: Final = {"preview", "fail_on_suspicious", "output_format"}
#: What a job that is not exact may go on with: its bits may differ.
_OF_THE_MACHINE: Final = frozenset({"device", "torch"})


class JobCheckpoints:
    """The record of one job on the device. Used by the engine's thread alone."""

    def __init__(self, request: RenderRequest, made_with: Mapping[str, object]) -> None:
        """Continue the earlier attempt's record, if there is one that fits.

        Args:
            request: Of the job.
            made_with: What the job's recipe says about model and libraries.
        """
        spec = request.spec
        if not spec.exact:
            made_with = {name: value for name, value in made_with.items() if name not in _OF_THE_MACHINE}
        about = spec.model_dump(mode="json", exclude=_NOT_RENDERED)
        self._request = request
        self._saved_at = time.monotonic()
        fingerprint = fingerprint_of(about, made_with, request.numerics if spec.exact else None)
        self.record = JobRecord(fingerprint, exact=spec.exact)
        if request.checkpoint_parts:
            try:
                steps = self.record.load(request.checkpoint_parts)
            except (InvalidPart, RecordMismatch) as reason:
                self._void(reason)
            else:
                log.info("goes on from a checkpoint", action="checkpoint_resumed", steps=steps)
                self._resumed(steps)

    def is_due(self) -> bool:
        """Whether the work since the last part is worth keeping."""
        if not self.record.enabled:
            return False
        long_enough = time.monotonic() - self._saved_at >= self._request.checkpoint_seconds
        return long_enough or self.record.pending_bytes >= MAX_PENDING_BYTES

    def save(self, steps: int, moments: Mapping[int, Moment | None]) -> None:
        """Give what was recorded since the last part to those who store it; see `JobRecord.snapshot`."""
        self._saved_at = time.monotonic()
        part = self.record.snapshot(steps, moments)
        if part is not None and self._request.on_checkpoint is not None:
            self._request.on_checkpoint(part)

    def begin_anew(self, reason: Exception) -> None:
        """An output's calls are not those of the earlier attempt: it begins anew, and nothing more is kept."""
        self.record.begin_anew()
        self._resumed(0)
        self._void(reason)

    def _resumed(self, steps: int) -> None:
        if self._request.on_resumed is not None:
            self._request.on_resumed(steps)

    def _void(self, reason: Exception) -> None:
        log.warning("a checkpoint is void", action="checkpoint_void", reason=str(reason))
        if self._request.on_void is not None:
            self._request.on_void()
