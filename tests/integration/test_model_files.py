"""The folder in which the workers of a host keep the files of models from the bucket."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from farm.domain.model import Model, ModelEntry, ModelFacts, ModelState
from farm.domain.model_files import FilePart, Manifest, ManifestFile, manifest_of
from farm.errors import JobCanceled, ModelUnavailable
from farm.objects import keys
from farm.objects.storage import OpenObject, Storage
from farm.services import model_uploads
from farm.settings import Settings
from farm.store.unit_of_work import Store
from tests.waiting import wait_until
from workers.model_files import FetchRequest, ModelFiles


@dataclass
class CountingStorage:
    """Counts the parts that are read; the first reads may be made to fail."""

    inner: Storage
    opened: list[str] = field(default_factory=list)
    fail_after: int | None = None

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def open(self, key: str) -> OpenObject:
        if self.fail_after is not None and len(self.opened) >= self.fail_after:
            raise OSError("the network is gone")
        self.opened.append(key)
        return self.inner.open(key)


@pytest.fixture
def storage(farm_env: dict[str, str]) -> Iterator[Storage]:
    made = Storage(Settings())
    yield made
    for prefix in (keys.MODEL_PARTS, keys.MODEL_MANIFESTS):
        made.delete_many([one.key for one in made.list(prefix)])
    made.close()


Push = Callable[..., Model]


@pytest.fixture
def push(storage: Storage) -> Push:
    """Put a model of these files into the bucket."""

    def pushed(name: str, **files: bytes) -> Model:
        listed = []
        for path, content in files.items():
            pieces = [content[start : start + 1000] for start in range(0, len(content), 1000)]
            for piece in pieces:
                storage.put(keys.model_part_key(hashlib.sha256(piece).hexdigest()), piece, "application/octet-stream")
            parts = tuple(FilePart(sha256=hashlib.sha256(one).hexdigest(), size=len(one)) for one in pieces)
            listed.append(ManifestFile(path=path.replace("__", "/"), parts=parts))
        manifest = Manifest(files=tuple(listed))
        assert model_uploads.upload(storage, manifest, 60).missing == 0
        return Model(id=name, source=manifest.source, tasks=("text-to-image",))

    return pushed


def request() -> FetchRequest:
    return FetchRequest(threading.Event())


def test_files_are_fetched_once_however_many_want_them_at_once(storage: Storage, push: Push, tmp_path: Path) -> None:
    model = push("m", unet__weights=bytes(range(256)) * 20, vae__config=b"", index=b"{}")
    counting = CountingStorage(storage)

    def use(_: int) -> dict[str, bytes]:
        with ModelFiles(counting, tmp_path / "cache", 10**6).held(model, request()) as local:  # type: ignore[arg-type]
            root = Path(local.source)
            return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(use, range(4)))
    assert found == [{"unet/weights": bytes(range(256)) * 20, "vae/config": b"", "index": b"{}"}] * 4
    assert len(counting.opened) == 7  # six pieces of the weights, and the index


def test_a_fetch_that_broke_off_goes_on_where_it_was(storage: Storage, push: Push, tmp_path: Path) -> None:
    content = b"".join(bytes([number]) * 1000 for number in range(20))
    model = push("m", weights=content)
    counting = CountingStorage(storage, fail_after=12)
    files = ModelFiles(counting, tmp_path, 10**6)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="the network is gone"), files.held(model, request()):
        pass
    counting.fail_after = None
    with files.held(model, request()) as local:
        assert (Path(local.source) / "weights").read_bytes() == content
    assert len(counting.opened) == 20


def test_what_was_not_used_for_the_longest_time_makes_room_unless_somebody_uses_it(
    storage: Storage, push: Push, tmp_path: Path
) -> None:
    models = [push(name, weights=name.encode() * 4000) for name in "abc"]
    files = ModelFiles(storage, tmp_path, 8000)

    def there() -> str:
        names = {manifest_of(model.source): model.id for model in models}
        return "".join(sorted(names[path.name] for path in tmp_path.iterdir() if path.is_dir()))

    with files.held(models[0], request()), files.held(models[1], request()):
        assert there() == "ab"
    with files.held(models[0], request()):  # used later than b
        pass
    with files.held(models[2], request()):
        assert there() == "ac"
    with files.held(models[0], request()), files.held(models[1], request()):
        assert there() == "ab"
        with files.held(models[2], request()):  # both others are in use
            assert there() == "abc"
    large = push("d", weights=b"d" * 9000)
    sentence = "takes 9,000 bytes, and FARM_MODEL_CACHE_BYTES allows 8,000"
    with pytest.raises(ModelUnavailable, match=sentence), files.held(large, request()):
        pass


def test_a_damaged_part_is_never_used(storage: Storage, push: Push, tmp_path: Path) -> None:
    model = push("m", weights=b"x" * 1000)
    key = keys.model_part_key(hashlib.sha256(b"x" * 1000).hexdigest())
    storage.put(key, b"y" * 1000, "application/octet-stream")
    files = ModelFiles(storage, tmp_path, 10**6)
    with pytest.raises(ModelUnavailable, match="damaged in the farm's bucket: push it again"):
        files.held(model, request()).__enter__()
    storage.delete(key)
    with pytest.raises(ModelUnavailable, match="lacks files in the farm's bucket: push it again"):
        files.held(model, request()).__enter__()


def test_a_job_that_is_stopped_waits_no_longer_for_its_model(storage: Storage, push: Push, tmp_path: Path) -> None:
    model = push("m", weights=b"x" * 1000)
    files = ModelFiles(storage, tmp_path, 10**6)
    stopped = FetchRequest(threading.Event())
    with files.held(model, request()), ThreadPoolExecutor(1) as pool:
        name = manifest_of(model.source)
        assert name is not None
        (tmp_path / name).rename(tmp_path / "elsewhere")  # so that the other has to fetch, and waits for the lock

        def wait() -> None:
            with files.held(model, stopped):
                pass

        waiting = pool.submit(wait)
        stopped.stopped.set()
        wait_until(waiting.done, what="it waits no longer")
        with pytest.raises(JobCanceled):
            waiting.result()


def test_files_that_no_model_names_are_removed_after_a_day(storage: Storage, push: Push, store: Store) -> None:
    kept, gone = push("kept", weights=b"k" * 1500), push("gone", weights=b"g" * 1500, shared=b"k" * 1000)
    with store.begin() as unit:
        entry = ModelEntry(id="kept", source=kept.source, tasks=("text-to-image",))
        unit.models.add(entry, ModelFacts(), ModelState.READY)
    assert model_uploads.sweep(store, storage) == 0
    assert model_uploads.sweep(store, storage, orphan_seconds=-60) == 3  # two parts and the manifest
    model_uploads.require_pushed(storage, kept.source)
    with pytest.raises(Exception, match="is not in the farm's bucket: push the model"):
        model_uploads.require_pushed(storage, gone.source)
