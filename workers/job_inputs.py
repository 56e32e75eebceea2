"""Fetches and decodes a job's inputs."""

from __future__ import annotations

import hashlib

from farm.domain.job_spec import InputFile
from farm.errors import InputRefused, InputUnavailable, NotFound
from farm.objects.storage import Storage
from farm.settings import Settings
from workers.leases import Lease, Stage
from workers.media.artifacts import Artifact
from workers.media.decoder import decode
from workers.retry import retry_storage


def fetch_inputs(lease: Lease, storage: Storage, settings: Settings) -> dict[str, tuple[Artifact, ...]]:
    """The job's inputs by role: a mask is L, ``depth_map`` is L or I;16, other images and the frames of clips are RGB.

    Raises:
        InputUnavailable: An input is no longer in the storage, is not what was recorded, or does not decode.
        StorageUnavailable: The storage did not answer for ``storage_retry_seconds``.
        JobCanceled: The job was stopped.
    """
    lease.enter(Stage.FETCHING)
    return {
        role: tuple(_fetch(lease, storage, settings, role, file) for file in files)
        for role, files in lease.job.spec.inputs.items()
    }


def _fetch(lease: Lease, storage: Storage, settings: Settings, role: str, file: InputFile) -> Artifact:
    try:
        data = retry_storage(lease, settings.storage_retry_seconds, lambda: storage.get(file.key))
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise InputUnavailable(
                f"{role} is damaged in the storage: its SHA-256 is not the recorded one; upload it anew"
            )
        return retry_storage(lease, settings.storage_retry_seconds, lambda: decode(role, file, data, settings))
    except NotFound as error:
        raise InputUnavailable(f"{role} is no longer in the storage") from error
    except InputRefused as error:
        raise InputUnavailable(f"{role} cannot be used: {error}") from error
