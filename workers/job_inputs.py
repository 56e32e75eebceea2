"""Fetches and decodes a job's input images."""

from __future__ import annotations

import hashlib
from typing import Final

from PIL import Image

from farm.domain.job_spec import InputFile
from farm.errors import InputRefused, InputUnavailable, NotFound
from farm.objects import images
from farm.objects.storage import Storage
from farm.settings import Settings
from workers.leases import Lease, Stage
from workers.retry import retry_storage

#: How an input is decoded, by its name; the others are RGB.
DECODERS: Final = {"mask_image": images.load_mask, "depth_map": images.load_depth}


def fetch_inputs(lease: Lease, storage: Storage, settings: Settings) -> dict[str, Image.Image]:
    """The job's inputs by name: ``image`` is RGB, ``mask_image`` L, ``depth_map`` L or I;16.

    Raises:
        InputUnavailable: An input is no longer in the storage, is not what was recorded, or does not decode.
        StorageUnavailable: The storage did not answer for ``storage_retry_seconds``.
        JobCanceled: The job was stopped.
    """
    lease.enter(Stage.FETCHING)
    return {role: _fetch(lease, storage, settings, role, files[0]) for role, files in lease.job.spec.inputs.items()}


def _fetch(lease: Lease, storage: Storage, settings: Settings, name: str, image: InputFile) -> Image.Image:
    decode = DECODERS.get(name, images.load_rgb)
    try:
        data = retry_storage(lease, settings.storage_retry_seconds, lambda: storage.get(image.key))
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise InputUnavailable(
                f"{name} is damaged in the storage: its SHA-256 is not the recorded one; upload it anew"
            )
        return retry_storage(lease, settings.storage_retry_seconds, lambda: decode(data, settings, field=name))
    except NotFound as error:
        raise InputUnavailable(f"{name} is no longer in the storage") from error
    except InputRefused as error:
        raise InputUnavailable(f"{name} cannot be used: {error}") from error
