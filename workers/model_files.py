"""The files of models from the farm's bucket, fetched once per host into a folder that its workers share.

    <folder>/<manifest>/        the files, complete and verified
    <folder>/<manifest>.part/   the files while they are fetched, and which parts are there
    <folder>/<manifest>.json    the manifest; its time is when the files were used last
    <folder>/<manifest>.lock    locked shared by whoever uses the files, and alone by whoever fetches or removes them

A lock ends with its process, so a killed worker leaves none. A fetch that broke off goes on where it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from botocore.exceptions import FlexibleChecksumError

from farm.domain.model import Model
from farm.domain.model_files import FilePart, Manifest, ManifestFile, manifest_of
from farm.errors import JobCanceled, ModelUnavailable, NotFound, RenderError, StorageUnavailable
from farm.objects import keys
from farm.objects.storage import OpenObject, Storage

log = structlog.stdlib.get_logger()

POLL_SECONDS: Final = 0.1  #: between two tries to have a lock
THREADS: Final = 4  #: parts of one model at once
_JOURNAL: Final = ".parts"  #: the parts that a folder in the making has


@dataclass(frozen=True)
class FetchRequest:
    """Who waits for a model's files."""

    stopped: threading.Event  #: set: nobody waits any more
    on_progress: Callable[[], object] = lambda: None  #: called whenever the fetch makes progress


class ModelFiles:
    """The folder of one host. Safe to share between threads and processes."""

    def __init__(self, storage: Storage, folder: Path, max_bytes: int) -> None:
        """``max_bytes``: the most that all models take, unless the ones in use take more."""
        self._storage = storage
        self._folder = folder
        self._max_bytes = max_bytes

    @contextmanager
    def held(self, model: Model, request: FetchRequest) -> Iterator[Model]:
        """The model with local paths as its source and config, which stay as long as the block.

        Raises:
            ModelUnavailable: The farm's bucket lacks the files, or they do not fit the folder.
            RenderError: The disk has no room for them.
            StorageUnavailable: The storage does not answer.
            JobCanceled: Nobody waits any more.
        """
        files = model.files or model.source
        with self._here(files, model, request) as source, self._here(model.config, model, request) as config:
            if (source, config) == (model.source, model.config):
                yield model
            else:
                yield model.model_copy(update={"source": source, "config": config})

    @contextmanager
    def _here(self, source: str | None, model: Model, request: FetchRequest) -> Iterator[str | None]:
        """The local path of a source in the bucket; any other source as it is."""
        name = None if source is None else manifest_of(source)
        if name is None:
            yield source
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            with self._locked(name, fcntl.LOCK_SH, request):
                manifest = self._complete(name)
                if manifest is not None:
                    yield str(self._local(name, manifest))
                    return
            with self._locked(name, fcntl.LOCK_EX, request):
                if self._complete(name) is None:
                    self._fetch(name, model, request)

    # -- locks ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self, name: str, kind: int, request: FetchRequest) -> Iterator[None]:
        with (self._folder / f"{name}.lock").open("w") as file:
            while not _try_lock(file.fileno(), kind):
                request.on_progress()  # whoever has it makes progress, or its process ends
                if request.stopped.wait(POLL_SECONDS):
                    raise JobCanceled("the job was stopped while its model was fetched")
            yield

    # -- what is there -------------------------------------------------------------------------------------------------

    def _complete(self, name: str) -> Manifest | None:
        """The manifest of files that are complete, which count as used now."""
        if not (self._folder / name).is_dir():
            return None
        try:
            manifest = Manifest.model_validate_json((self._folder / f"{name}.json").read_bytes())
            os.utime(self._folder / f"{name}.json")
        except (OSError, ValueError):  # somebody has meddled with the folder
            return None
        return manifest

    def _local(self, name: str, manifest: Manifest) -> Path:
        folder = self._folder / name
        return folder if manifest.single_file is None else folder / manifest.single_file

    def _sizes(self) -> dict[str, int]:
        """The bytes of each model that is there or is being fetched, least recently used first."""
        found: list[tuple[float, str, int]] = []
        for path in self._folder.glob("*.json"):
            with suppress(OSError, ValueError):
                size = Manifest.model_validate_json(path.read_bytes()).size
                found.append((path.stat().st_mtime, path.stem, size))
        return {name: size for _, name, size in sorted(found)}

    # -- fetching ------------------------------------------------------------------------------------------------------

    def _fetch(self, name: str, model: Model, request: FetchRequest) -> None:
        """Bring the files; the lock is held."""
        manifest = self._manifest(name, model)
        self._make_room(name, manifest.size, model)
        part = self._folder / f"{name}.part"
        try:
            part.mkdir(exist_ok=True)
            (self._folder / f"{name}.json").write_bytes(manifest.encode())
            began = time.monotonic()
            self._fetch_parts(part, manifest, model, request)
            for file in manifest.files:
                _flush(part / file.path)
            with suppress(FileNotFoundError):
                (part / _JOURNAL).unlink()
            shutil.rmtree(self._folder / name, ignore_errors=True)
            part.rename(self._folder / name)
        except OSError as error:
            raise RenderError(
                f"model {model.id} cannot be fetched into {self._folder}: {error.strerror or error}"
            ) from error
        log.info(
            "model fetched",
            action="model_fetched",
            model=model.id,
            bytes=manifest.size,
            seconds=round(time.monotonic() - began, 2),
        )

    def _manifest(self, name: str, model: Model) -> Manifest:
        try:
            content = self._storage.get(keys.model_manifest_key(name))
            if hashlib.sha256(content).hexdigest() != name:
                raise ModelUnavailable(f"the list of files of model {model.id} is damaged: push it again")
            return Manifest.model_validate_json(content)
        except (NotFound, ValueError) as error:
            raise ModelUnavailable(f"model {model.id} is not in the farm's bucket: push it again") from error

    def _make_room(self, name: str, needed: int, model: Model) -> None:
        """Remove the models that were not used for the longest time, except those that somebody uses."""
        if needed > self._max_bytes:
            raise ModelUnavailable(
                f"model {model.id} takes {needed:,} bytes, and FARM_MODEL_CACHE_BYTES allows {self._max_bytes:,}"
            )
        sizes = self._sizes()
        sizes.pop(name, None)
        total = sum(sizes.values())
        for other, size in sizes.items():
            if total + needed <= self._max_bytes:
                break
            if self._remove(other):
                total -= size
        free = shutil.disk_usage(self._folder).free
        there = sum(path.stat().st_blocks * 512 for path in (self._folder / f"{name}.part").rglob("*"))
        if needed - there > free:
            raise RenderError(
                f"model {model.id} takes {needed:,} bytes, and the disk of {self._folder} has {free:,} left"
            )

    def _remove(self, name: str) -> bool:
        """Remove a model's files unless somebody uses them."""
        with (self._folder / f"{name}.lock").open("w") as file:
            if not _try_lock(file.fileno(), fcntl.LOCK_EX):
                return False
            with suppress(FileNotFoundError):
                (self._folder / f"{name}.json").unlink()
            for folder in (self._folder / name, self._folder / f"{name}.part"):
                shutil.rmtree(folder, ignore_errors=True)
        log.info("a model's files are removed", action="model_files_removed", manifest=name)
        return True

    def _fetch_parts(self, folder: Path, manifest: Manifest, model: Model, request: FetchRequest) -> None:
        """Bring every part that the folder does not have."""
        journal = folder / _JOURNAL
        present = set(journal.read_text().split()) if journal.is_file() else set()
        gone_wrong = threading.Event()
        lock = threading.Lock()

        def bring(file: ManifestFile, start: int, part: FilePart) -> None:
            mark = f"{hashlib.sha256(file.path.encode()).hexdigest()[:16]}:{start}"
            if mark in present or gone_wrong.is_set():
                return
            try:
                self._bring(folder / file.path, start, part, model, request)
            except BaseException:
                gone_wrong.set()
                raise
            with lock, journal.open("a") as target:
                target.write(f"{mark}\n")

        with ThreadPoolExecutor(THREADS, thread_name_prefix=f"fetch {model.id}") as pool:
            futures = []
            for file in manifest.files:
                path = folder / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                start = 0
                for part in file.parts:
                    futures.append(pool.submit(bring, file, start, part))
                    start += part.size
            for future in futures:
                future.result()

    def _bring(self, path: Path, start: int, part: FilePart, model: Model, request: FetchRequest) -> None:
        """Write one part into its file, verified."""
        digest = hashlib.sha256()
        try:
            opened = self._storage.open(keys.model_part_key(part.sha256))
        except NotFound as error:
            raise ModelUnavailable(f"model {model.id} lacks files in the farm's bucket: push it again") from error
        with opened, path.open("r+b") as target:
            target.seek(start)
            for chunk in _undamaged(opened):
                if request.stopped.is_set():
                    raise JobCanceled("the job was stopped while its model was fetched")
                digest.update(chunk)
                target.write(chunk)
                request.on_progress()
            target.flush()
            os.fsync(target.fileno())  # the journal must not be ahead of the files
        if digest.hexdigest() != part.sha256:
            raise ModelUnavailable(f"{path.name} of model {model.id} is damaged in the farm's bucket: push it again")


def _undamaged(opened: OpenObject) -> Iterator[bytes]:
    """The chunks; damage that the storage itself finds ends them, and shows in their SHA-256."""
    try:
        yield from opened
    except StorageUnavailable as error:
        if not isinstance(error.__cause__, FlexibleChecksumError):
            raise


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
