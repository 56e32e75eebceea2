"""From rendered artifacts to stored outputs: encode, upload, and spool on disk while the storage does not answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Final, TypeAlias

import structlog

from farm import metrics
from farm.domain.job import Output
from farm.domain.job_spec import JobSpec
from farm.domain.media import SUSPICIONS, SUSPICIOUS, MediaMetadata
from farm.errors import StorageUnavailable, SuspiciousOutput
from farm.objects import keys
from farm.objects.storage import Storage
from workers import failpoints
from workers.leases import Lease, Stage
from workers.media.encoder import encode
from workers.media.suspicion import suspicion
from workers.render_request import RenderResult
from workers.retry import retry_storage
from workers.stages import measure
from workers.upload_spool import UploadSpool

log = structlog.stdlib.get_logger()

UPLOADS_AT_ONCE: Final = 4  #: of one job: each waits for round trips, not for this processor


@dataclass(frozen=True)
class EncodedOutput:
    """An encoded output, beside its bytes."""

    index: int  #: of the output
    media_type: str
    metadata: MediaMetadata  #: what the file holds, as it came out


_Upload: TypeAlias = tuple[EncodedOutput, bytes, Future[Output]]


@dataclass(frozen=True)
class OutputUploader:
    """Stores the outputs of jobs."""

    storage: Storage
    spool: UploadSpool
    retry_seconds: float  #: how long a finished output waits for the storage

    def upload(self, lease: Lease, result: RenderResult) -> Iterator[Output]:
        """Encode each artifact and PUT it under the epoch's key. Empties ``result.artifacts``.

        Yields each output as soon as it is stored, so that the caller knows what to delete if a later one fails.

        Raises:
            SuspiciousOutput: An output looks wrong, and the job asked to fail then.
            StorageUnavailable: The storage did not answer for ``retry_seconds``.
            JobCanceled: The job was stopped while it waited for the storage.
        """
        lease.enter(Stage.STORING)
        uploads: deque[_Upload] = deque()
        spooled: list[tuple[EncodedOutput, Callable[[], bytes]]] = []
        with ThreadPoolExecutor(UPLOADS_AT_ONCE, thread_name_prefix="upload") as pool:
            for encoded, body in encode_outputs(lease.job.spec, result):
                if spooled:
                    spooled.append((encoded, self.spool.add(lease.held, encoded.index, body)))
                    continue
                stored = pool.submit(copy_context().run, self._put, lease, encoded, body)
                uploads.append((encoded, body, stored))
                if len(uploads) == UPLOADS_AT_ONCE:
                    yield from self._finish(lease, uploads.popleft(), spooled)
            while uploads:
                yield from self._finish(lease, uploads.popleft(), spooled)
        yield from self._upload_spooled(lease, spooled)

    def _finish(
        self, lease: Lease, upload: _Upload, spooled: list[tuple[EncodedOutput, Callable[[], bytes]]]
    ) -> Iterator[Output]:
        """Wait for an upload; spool its file if the storage did not take it."""
        encoded, body, stored = upload
        try:
            yield stored.result()
        except StorageUnavailable as error:
            if not spooled:
                log.warning("spooling the outputs on disk", action="outputs_spooled", error=str(error))
                metrics.OUTPUTS_SPOOLED.inc()
            spooled.append((encoded, self.spool.add(lease.held, encoded.index, body)))

    def _upload_spooled(
        self, lease: Lease, spooled: list[tuple[EncodedOutput, Callable[[], bytes]]]
    ) -> Iterator[Output]:
        for encoded, read in spooled:

            def put(encoded: EncodedOutput = encoded, read: Callable[[], bytes] = read) -> Output:
                return self._put(lease, encoded, read())

            yield retry_storage(lease, self.retry_seconds, put)

    def _put(self, lease: Lease, encoded: EncodedOutput, body: bytes) -> Output:
        """PUT one file. Raises `StorageUnavailable`."""
        job, spec = lease.job, lease.job.spec
        key = keys.output_key(job.tenant_id, job.id, lease.epoch, encoded.index, keys.extension(encoded.media_type))
        with measure("upload"):
            written = self.storage.put(key, body, encoded.media_type)
        assert written.sha256 is not None  # put() computes it
        if encoded.index + 1 < spec.num_outputs:
            failpoints.at("mid_upload", spec.prompt)
        lease.record_progress()
        return Output(
            index=encoded.index,
            key=key,
            media_type=encoded.media_type,
            size=len(body),
            sha256=written.sha256,
            seed=spec.seed_of(encoded.index),
            metadata=encoded.metadata,
        )


def encode_outputs(spec: JobSpec, result: RenderResult) -> Iterator[tuple[EncodedOutput, bytes]]:
    """Each artifact as a file with its recipe. Empties ``result.artifacts``, so that a spooled one is freed."""
    for index in range(len(result.artifacts)):
        artifact = result.artifacts.pop(0)
        with measure("encode"):
            reason = suspicion(artifact)
            file = encode(artifact, spec, index, result.made_with)
        del artifact
        metadata = file.metadata
        if reason is not None:
            metrics.SUSPICIOUS_OUTPUTS.labels(spec.model, reason).inc()
            log.warning("an output looks wrong", action="output_suspicious", index=index, reason=reason)
            if spec.fail_on_suspicious:
                raise SuspiciousOutput(f"output {index} {SUSPICIONS[reason]}")
            metadata = {**metadata, SUSPICIOUS: reason}
        failpoints.at("after_encode", spec.prompt)
        yield EncodedOutput(index, file.media_type, metadata), file.body
