"""The files of models in the farm's bucket: uploading them piece by piece, reading them, and removing what is unused.

A manifest names the pieces of each file by their SHA-256, so a push that broke off goes on where it was, and files that
two models share are stored once.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from pydantic import ValidationError

from farm.domain.model_files import FilePart, Manifest, manifest_of
from farm.errors import BadInput, NotFound
from farm.model_folder import MAX_CONFIG
from farm.objects import keys
from farm.objects.storage import Storage
from farm.store.unit_of_work import Store
from farm.weights import SAFETENSORS

log = structlog.stdlib.get_logger()

AT_ONCE: Final = 32  #: URLs in one answer: they expire
ORPHAN_SECONDS: Final = 24 * 3600.0  #: pieces that no model names are kept for so long: a push may still need them
DELETE_AT_ONCE: Final = 500
#: What the names of a checkpoint's tensors begin with that belong to text encoders.
_TEXT_ENCODERS: Final = ("cond_stage_model.", "conditioner.embedders.", "text_encoders.")


@dataclass(frozen=True)
class PartUpload:
    """A piece that the bucket lacks, and how to write it."""

    part: FilePart
    url: str  #: for a PUT
    headers: dict[str, str]  #: that have to come with it


@dataclass(frozen=True)
class UploadState:
    """What a manifest still lacks."""

    source: str  #: what an entry names when nothing is missing
    missing: int  #: pieces
    missing_bytes: int
    uploads: list[PartUpload]  #: the first of them


def upload(storage: Storage, manifest: Manifest, url_seconds: int) -> UploadState:
    """What the bucket lacks of a manifest's pieces; the manifest is stored when it lacks nothing."""
    missing = _missing(storage, manifest)
    if not missing:
        name = manifest_of(manifest.source)
        assert name is not None
        storage.put(keys.model_manifest_key(name), manifest.encode(), "application/json")
    uploads = [
        PartUpload(part, *storage.presign_put(keys.model_part_key(part.sha256), part.sha256, url_seconds))
        for part in missing[:AT_ONCE]
    ]
    return UploadState(manifest.source, len(missing), sum(part.size for part in missing), uploads)


def read_manifest(storage: Storage, name: str) -> Manifest:
    """The manifest with this SHA-256. Raises `NotFound`, `StorageUnavailable`, or `ValueError` if it is damaged."""
    return Manifest.model_validate_json(storage.get(keys.model_manifest_key(name)))


@dataclass(frozen=True)
class PushedFolder:
    """The files of a model in the farm's bucket, for `farm.model_folder.inspect`."""

    storage: Storage
    manifest: Manifest

    @property
    def name(self) -> str:
        """The source, shortened."""
        return f"{self.manifest.source[:19]}…"

    def paths(self) -> frozenset[str]:
        """All files."""
        return frozenset(file.path for file in self.manifest.files)

    def read(self, path: str) -> bytes:
        """The beginning of a file."""
        (file,) = (file for file in self.manifest.files if file.path == path)
        found = b""
        for part in file.parts:
            wanted = MAX_CONFIG - len(found)
            if wanted <= 0:
                break
            key = keys.model_part_key(part.sha256)
            found += self.storage.get(key) if part.size <= wanted else self.storage.get_range(key, 0, wanted)
        return found


def require_pushed(storage: Storage, source: str) -> PushedFolder:
    """The files that a source in the farm's bucket names, all of which are there. Raises `BadInput`."""
    name = manifest_of(source)
    if name is None:
        raise BadInput.of("source", source, "must be farm:// and the SHA-256 of a manifest, as `farm models push` says")
    try:
        manifest = read_manifest(storage, name)
    except NotFound:
        raise BadInput.of("source", source, "is not in the farm's bucket: push the model") from None
    except ValidationError as error:
        raise BadInput.of("source", source, f"is damaged: {error.errors()[0]['msg']}; push the model again") from None
    if _missing(storage, manifest):
        raise BadInput.of("source", source, "lacks files in the farm's bucket: push the model again")
    return PushedFolder(storage, manifest)


def config_manifest(storage: Storage, source: str, tensors: Collection[str] | None) -> str:
    """Store the manifest of what a checkpoint in one file needs of a pushed model; returns it as a source.

    These are all files but the weights of what the checkpoint has itself.

    Args:
        storage: the farm's bucket.
        source: of the other model.
        tensors: the names of the checkpoint's tensors; None: not known.

    Raises:
        BadInput: the other model is not in the bucket.
    """
    whole = require_pushed(storage, source).manifest
    encodes = tensors is None or not any(name.startswith(_TEXT_ENCODERS) for name in tensors)
    files = tuple(
        file
        for file in whole.files
        if not file.path.endswith(SAFETENSORS) or (encodes and file.path.startswith("text_encoder"))
    )
    if not files:
        raise BadInput.of("config", source, "has no configs: name a folder in diffusers' layout")
    slim = Manifest(files=files)
    name = manifest_of(slim.source)
    assert name is not None
    storage.put(keys.model_manifest_key(name), slim.encode(), "application/json")
    return slim.source


def sweep(store: Store, storage: Storage, orphan_seconds: float = ORPHAN_SECONDS) -> int:
    """Remove the pieces and manifests that no row names and that are older than that; returns how many."""
    with store.begin() as unit:
        if not unit.models.lock_files(wait=False):
            return 0  # another process does it, or a model is being added
        sources = [
            str(one)
            for row in unit.models.all()
            for one in (row.entry.get("source"), row.facts.get("config"), row.facts.get("files"))
        ]
        named = {name for source in sources if (name := manifest_of(source)) is not None}
        kept: set[str] = {keys.model_manifest_key(name) for name in named}
        for name in named:
            with suppress(NotFound):  # its row stays, and a push mends it
                kept |= {keys.model_part_key(part) for part in read_manifest(storage, name).parts}
        before = datetime.now(UTC) - timedelta(seconds=orphan_seconds)
        unused = [
            one.key
            for prefix in (keys.MODEL_PARTS, keys.MODEL_MANIFESTS)
            for one in storage.list(prefix)
            if one.key not in kept and one.modified < before
        ]
        for start in range(0, len(unused), DELETE_AT_ONCE):
            storage.delete_many(unused[start : start + DELETE_AT_ONCE])
    if unused:
        log.info("unused files of models are removed", action="model_files_removed", objects=len(unused))
    return len(unused)


def _missing(storage: Storage, manifest: Manifest) -> list[FilePart]:
    """The pieces that the bucket does not have, in the order of the files."""
    wanted = manifest.parts
    present: Collection[str] = {
        one.key for one in storage.list(keys.MODEL_PARTS) if _size_is(wanted, one.key, one.bytes)
    }
    return [part for part in wanted.values() if keys.model_part_key(part.sha256) not in present]


def _size_is(wanted: dict[str, FilePart], key: str, size: int) -> bool:
    part = wanted.get(key.removeprefix(keys.MODEL_PARTS))
    return part is not None and part.size == size
