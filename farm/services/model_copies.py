"""Copying a model from another place of the object storage into the farm's bucket, part by part.

The copy is what jobs are rendered with: it is verified like a pushed model, and does not change with the original.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import urlsplit

from farm.domain.model_files import FilePart, Manifest, ManifestFile, manifest_of
from farm.errors import BadInput, NotFound
from farm.objects import keys
from farm.objects.storage import ListedObject, Storage
from farm.weights import PART_BYTES, SAFETENSORS, UNSAFE

SCHEME: Final = "s3://"


def parse(source: str) -> tuple[str, str]:
    """Bucket and prefix of ``s3://bucket/prefix``. Raises `BadInput`."""
    parts = urlsplit(source)
    if not parts.netloc or not parts.path.strip("/"):
        raise BadInput.of("source", source, "must be s3://bucket/prefix")
    return parts.netloc, parts.path.strip("/")


def copy(storage: Storage, source: str, on_progress: Callable[[int, int], object]) -> str:
    """Copy the safetensors files, configs and tokenizers below a prefix; returns the copy as a source.

    Args:
        storage: the farm's bucket; the same credentials read the other one.
        source: ``s3://bucket/prefix``, a folder in diffusers' layout, or one ``.safetensors`` file.
        on_progress: gets the bytes that are copied, and all of them.

    Raises:
        BadInput: there is no such model.
        StorageUnavailable: the storage does not answer, or does not let the farm read there.
    """
    bucket, prefix = parse(source)
    other = storage.of_bucket(bucket)
    found = list(_files(other, prefix))
    if not any(path.endswith(SAFETENSORS) for path, _ in found):
        raise BadInput.of("source", source, f"{source} has no {SAFETENSORS} files; other formats can contain code")
    total = sum(one.bytes for _, one in found)
    done = 0
    files: list[ManifestFile] = []
    for path, one in found:
        parts: list[FilePart] = []
        for start in range(0, one.bytes, PART_BYTES):
            try:
                content = other.get_range(one.key, start, min(PART_BYTES, one.bytes - start))
            except NotFound as error:
                raise BadInput.of("source", source, f"{path} was removed while it was copied") from error
            part = FilePart(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
            key = keys.model_part_key(part.sha256)
            if not storage.exists(key):
                storage.put(key, content, "application/octet-stream")
            parts.append(part)
            done += len(content)
            on_progress(done, total)
        files.append(ManifestFile(path=path, parts=tuple(parts)))
    manifest = Manifest(files=tuple(files))
    name = manifest_of(manifest.source)
    assert name is not None
    storage.put(keys.model_manifest_key(name), manifest.encode(), "application/json")
    return manifest.source


def _files(other: Storage, prefix: str) -> Iterator[tuple[str, ListedObject]]:
    """The files of a model by their paths in it; those of other formats and hidden ones are left out."""
    for one in other.list(prefix):
        if one.key == prefix:
            path = PurePosixPath(prefix).name
        elif one.key.startswith(f"{prefix}/"):
            path = one.key.removeprefix(f"{prefix}/")
        else:  # another name with the same beginning
            continue
        hidden = any(part.startswith(".") for part in PurePosixPath(path).parts)
        if path and not path.endswith("/") and not hidden and PurePosixPath(path).suffix.lower() not in UNSAFE:
            yield path, one
