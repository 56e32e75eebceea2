"""Which models lie in the device's memory. They stay while there is room; the least recently used goes first."""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog
import torch

from farm import metrics
from farm.domain.model import Model
from farm.domain.worker import Device
from workers import failpoints, pipelines
from workers.cpu_model_cache import Attic
from workers.device import NO_UPKEEP, Upkeep
from workers.pipelines import LoadedModel

log = structlog.stdlib.get_logger()

#: The share of the device's memory that weights may fill; the rest is for activations and other processes' needs.
SHARE: Final = {"cuda": 0.7, "mps": 0.5, "cpu": 0.5}


class Residency:
    """The models of one device. Used by its engine thread alone; `ids` may be read from anywhere."""

    def __init__(
        self, device: Device, on_drop: Callable[[str], None] | None = None, upkeep: Upkeep = NO_UPKEEP
    ) -> None:
        """``on_drop`` gets the id of a model that goes, while it is still there: the last chance to let go of it."""
        self._device = device
        self._upkeep = upkeep
        self._attic = Attic(device, upkeep.attic_bytes)
        self._on_drop = on_drop
        self._budget = int(device.memory_bytes * SHARE.get(device.kind, 0.5))
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._known: dict[str, int] = {}  # measured when they were last in memory
        self.ids: tuple[str, ...] = ()  #: what is loaded, least recently used first
        self.sizes: tuple[tuple[str, int], ...] = ()  #: the same with the bytes of the weights

    def get(self, model: Model) -> LoadedModel:
        """The model in memory, loaded now if it is not. Raises `ModelUnavailable`, or the allocator's error."""
        found = self._models.get(model.id)
        if found is not None and found.model == model:
            self._models.move_to_end(model.id)
            self._note()
            return found
        if found is not None:  # the registry says something else by now
            self._drop(model.id, for_good=True)
        self._make_room(self._known.get(model.id, 0))
        failpoints.at("loading_model")
        started = time.monotonic()
        try:
            loaded = self._attic.bring(model) or self._load(model)
        except Exception as error:
            if not pipelines.is_out_of_memory(error) or not self.drop_others(model.id):
                raise
            loaded = self._load(model)
        metrics.MODEL_LOAD_SECONDS.labels(model.id).observe(time.monotonic() - started)
        log.info(
            "model loaded",
            action="model_loaded",
            model=model.id,
            seconds=round(time.monotonic() - started, 2),
            bytes=loaded.bytes,
            dtype=loaded.dtype,
        )
        self._known[model.id] = loaded.bytes
        self._models[model.id] = loaded
        self._make_room(0)
        self._note()
        return loaded

    def _load(self, model: Model) -> LoadedModel:
        loaded = pipelines.load(model, self._device)
        if self._upkeep.compile_dir is not None:
            loaded.compile()
        return loaded

    def holds(self, model: Model) -> bool:
        """Whether `get` would find it in memory."""
        found = self._models.get(model.id)
        return found is not None and found.model == model

    def drop_others(self, keep: str) -> bool:
        """Free the memory of every model but one; False if there was none."""
        others = [name for name in self._models if name != keep]
        for name in others:
            self._drop(name)
        free()
        return bool(others)

    def _make_room(self, coming: int) -> None:
        while len(self._models) > (0 if coming else 1) and self._used() + coming > self._budget:
            self._drop(next(iter(self._models)))

    def _used(self) -> int:
        return sum(one.bytes for one in self._models.values())

    def _drop(self, name: str, *, for_good: bool = False) -> None:
        if self._on_drop is not None:
            self._on_drop(name)
        gone = self._models.pop(name)
        kept = not for_good and self._attic.keep(gone)
        log.info("model dropped", action="model_dropped", model=name, bytes=gone.bytes, kept=kept)
        del gone
        free()
        self._note()

    def _note(self) -> None:
        self.ids = tuple(self._models)
        self.sizes = tuple((name, one.bytes) for name, one in self._models.items())


def free() -> None:
    """Give memory that nothing refers to back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
