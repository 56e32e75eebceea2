"""The models in memory: on the device while there is room, then in page-locked main memory if the operator allows it.

On the device, the least recently used model is evicted first. To load a model of 5 GB from its files takes seconds even
if they are in the page cache; from page-locked memory it is one copy at the speed of the bus. Such memory is lost to
everything else on the machine, so it has a limit in bytes, and the limit is 0 unless the operator sets it. Where the
device's memory is the machine's own, it gains nothing.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

import structlog
import torch

from farm import metrics
from farm.domain.model import Model
from farm.domain.worker import Device
from farm.errors import OutOfMemory
from workers import device_errors, failpoints, pipelines
from workers.device import torch_device
from workers.pipelines import LoadedModel

log = structlog.stdlib.get_logger()

#: The share of the device's memory that weights may fill; the rest is for activations and other processes.
WEIGHTS_SHARE: Final = {"cuda": 0.7, "mps": 0.5, "cpu": 0.5}


class ModelCache:
    """The models of one device. Used by the engine's thread alone, except that any thread may read `sizes`."""

    def __init__(
        self, device: Device, *, cpu_bytes: int = 0, compiled: bool = False, compile_problem: str | None = None
    ) -> None:
        """Start empty.

        Args:
            device: Where the models are loaded.
            cpu_bytes: Page-locked main memory for evicted models, see `CpuModelCache`.
            compiled: Whether to compile each model that is loaded.
            compile_problem: Why that is asked for and cannot be done.
        """
        self.device = device
        self.sizes: tuple[tuple[str, int], ...] = ()  #: id and bytes of each model, least recently used first
        #: Called with the id of a model that is evicted, while it is still in memory.
        self.on_evict: Callable[[str], None] | None = None
        self._compiled = compiled
        self._compile_problem = compile_problem
        self._cpu_cache = CpuModelCache(device, cpu_bytes)
        self._budget = int(device.memory_bytes * WEIGHTS_SHARE.get(device.kind, 0.5))
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._known_bytes: dict[str, int] = {}  # by id: measured when the model was last loaded
        self._prefetched: set[str] = set()  # ids

    def __contains__(self, model: Model) -> bool:
        """Whether the model is in the device's memory, so that `load` returns at once."""
        found = self._models.get(model.id)
        return found is not None and found.model == model

    def load(self, model: Model) -> LoadedModel:
        """The model in the device's memory; loads it if necessary, which may evict others.

        Raises:
            ModelUnavailable: The model is missing or broken; the message says how.
            OutOfMemory: The model does not fit the device.
        """
        try:
            loaded = self._load(model)
        except Exception as error:
            if device_errors.is_out_of_memory(error):
                raise OutOfMemory(f"model {model.id} does not fit the device's memory") from error
            raise
        self._prefetched.discard(model.id)  # once it is evicted, its files may leave the page cache
        return loaded

    def prefetch(self, model: Model) -> None:
        """Download a model and read it into the page cache in the background, so that `load` need not wait for it."""
        if model.id in self._prefetched or model in self:
            return
        self._prefetched.add(model.id)

        def run() -> None:
            try:
                size = pipelines.fetch(model)
            except Exception as error:  # noqa: BLE001 - `load` will raise it for the job
                log.info("cannot prefetch", action="model_prefetch_failed", model=model.id, error=str(error)[:200])
            else:
                log.info("prefetched", action="model_prefetched", model=model.id, bytes=size)

        threading.Thread(target=run, name=f"prefetch {model.id}", daemon=True).start()

    def evict_others(self, keep: str) -> bool:
        """Evict every model except the one with the id ``keep``; False if there was none."""
        others = [name for name in self._models if name != keep]
        for name in others:
            self._evict(name)
        free_memory()
        return bool(others)

    def _load(self, model: Model) -> LoadedModel:
        if model in self:
            self._models.move_to_end(model.id)
            self._publish()
            return self._models[model.id]
        if model.id in self._models:  # its registry entry has changed
            self._evict(model.id, to_cpu=False)
        self._make_room(self._known_bytes.get(model.id, 0))
        failpoints.at("loading_model")
        started = time.monotonic()
        try:
            loaded = self._cpu_cache.take(model) or self._load_files(model)
        except Exception as error:
            if not device_errors.is_out_of_memory(error) or not self.evict_others(model.id):
                raise
            loaded = self._load_files(model)
        seconds = time.monotonic() - started
        metrics.MODEL_LOAD_SECONDS.labels(model.id).observe(seconds)
        log.info(
            "model loaded",
            action="model_loaded",
            model=model.id,
            seconds=round(seconds, 2),
            bytes=loaded.bytes,
            dtype=loaded.dtype,
        )
        self._known_bytes[model.id] = loaded.bytes
        self._models[model.id] = loaded
        self._make_room(0)
        self._publish()
        return loaded

    def _load_files(self, model: Model) -> LoadedModel:
        loaded = pipelines.load(model, self.device)
        if self._compiled:
            loaded.compile(self._compile_problem)
        return loaded

    def _make_room(self, needed: int) -> None:
        while len(self._models) > (0 if needed else 1) and self._used() + needed > self._budget:
            self._evict(next(iter(self._models)))

    def _used(self) -> int:
        return sum(loaded.bytes for loaded in self._models.values())

    def _evict(self, name: str, *, to_cpu: bool = True) -> None:
        if self.on_evict is not None:
            self.on_evict(name)
        evicted = self._models.pop(name)
        kept = to_cpu and self._cpu_cache.put(evicted)
        log.info("model evicted", action="model_evicted", model=name, bytes=evicted.bytes, in_cpu_cache=kept)
        del evicted
        free_memory()
        self._publish()

    def _publish(self) -> None:
        self.sizes = tuple((name, loaded.bytes) for name, loaded in self._models.items())


class CpuModelCache:
    """Models evicted from a CUDA device, in page-locked main memory. A model is on the device or here, never both.

    Used by the engine's thread alone.
    """

    def __init__(self, device: Device, max_bytes: int) -> None:
        """``max_bytes``: 0 keeps nothing."""
        self._torch_device = torch_device(device)
        self._max_bytes = max_bytes if device.kind == "cuda" else 0
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()  # first in, first out
        self._bytes: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        """Of all weights here."""
        return sum(self._bytes.values())

    def put(self, loaded: LoadedModel) -> bool:
        """Move a model here from the device, in the place of older ones; False if it is too large for the cache."""
        size = sum(tensor.nbytes for tensor in weights(loaded))
        if not 0 < size <= self._max_bytes:
            return False
        while self.bytes + size > self._max_bytes:
            self._remove(next(iter(self._models)))
        try:
            _move_weights(loaded, "cpu", pinned=True)
        except (RuntimeError, MemoryError) as error:  # the machine has no more memory that can be locked
            log.warning(
                "cannot keep the model in main memory",
                action="cpu_cache_failed",
                model=loaded.model.id,
                error=str(error)[:200],
            )
            return False
        self._models[loaded.model.id] = loaded
        self._bytes[loaded.model.id] = size
        log.info("model moved to main memory", action="model_in_cpu_cache", model=loaded.model.id, bytes=size)
        return True

    def take(self, model: Model) -> LoadedModel | None:
        """Move a model back to the device; None if it is not here.

        Raises the allocator's error if the device has no room for it, and then the model is gone from here, too.
        """
        found = self._models.get(model.id)
        if found is None:
            return None
        self._remove(model.id)
        if found.model != model:  # its registry entry has changed
            return None
        _move_weights(found, self._torch_device, pinned=False)
        return found

    def _remove(self, name: str) -> None:
        del self._models[name], self._bytes[name]


def weights(loaded: LoadedModel) -> Iterator[torch.Tensor]:
    """All parameters and buffers of a model's components and LoRAs, each once."""
    seen: set[int] = set()
    for module in loaded.modules():
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def free_memory() -> None:
    """Return memory to the device that no tensor uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _move_weights(loaded: LoadedModel, device: str, *, pinned: bool) -> None:
    """Move the values of all weights; the modules stay the same objects."""
    with torch.no_grad():
        for tensor in weights(loaded):
            if pinned:
                copy = torch.empty_like(tensor.data, device=device, pin_memory=torch.cuda.is_available())
                copy.copy_(tensor.data)
                tensor.data = copy
            else:
                tensor.data = tensor.data.to(device, non_blocking=True)  # same stream as the forwards, so they wait
