"""Models that had to leave a CUDA device, kept in page-locked main memory, from where they are back in a moment.

Bringing a model of 5 GB from its files takes seconds even when they lie in the page cache; from page-locked memory it
is one copy at the speed of the bus. Such memory is lost to everything else on the machine, so it has a limit in bytes,
and none is taken unless the operator says how much. Where the device's memory is the machine's own, nothing is to gain.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import structlog
import torch

from farm.domain.model import Model
from farm.domain.worker import Device
from workers.device import torch_device
from workers.pipelines import LoadedModel

log = structlog.stdlib.get_logger()


class Attic:
    """Used by the engine's thread alone. A model is on the device or here, never both."""

    def __init__(self, device: Device, limit: int) -> None:
        """``limit``: bytes; 0 keeps nothing."""
        self._where = torch_device(device)
        self._limit = limit if device.kind == "cuda" else 0
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()  # the one that came first goes first
        self._bytes: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        """Of all weights here."""
        return sum(self._bytes.values())

    def keep(self, model: LoadedModel) -> bool:
        """Take a model off the device, others leaving for it; False if it does not fit here at all, or nothing does."""
        size = sum(tensor.nbytes for tensor in weights(model))
        if not 0 < size <= self._limit:
            return False
        while self.bytes + size > self._limit:
            self._forget(next(iter(self._models)))
        try:
            _lay(model, "cpu", locked=True)
        except (RuntimeError, MemoryError) as error:  # the machine gives no more of such memory
            log.warning("not kept in main memory", action="model_unkept", model=model.model.id, error=str(error)[:200])
            return False
        self._models[model.model.id] = model
        self._bytes[model.model.id] = size
        log.info("model kept in main memory", action="model_kept", model=model.model.id, bytes=size)
        return True

    def bring(self, model: Model) -> LoadedModel | None:
        """The model, on the device again; None if it is not here. Raises the allocator's error, and then it is gone."""
        found = self._models.get(model.id)
        if found is None:
            return None
        self._forget(model.id)
        if found.model != model:  # the registry says something else by now
            return None
        _lay(found, self._where, locked=False)
        return found

    def _forget(self, name: str) -> None:
        del self._models[name], self._bytes[name]


def weights(model: LoadedModel) -> Iterator[torch.Tensor]:
    """All parameters and buffers of a model's components, its LoRAs' too, each once."""
    seen: set[int] = set()
    for module in model.modules():
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def _lay(model: LoadedModel, where: str, *, locked: bool) -> None:
    """Put the values of all weights elsewhere; the modules stay the same objects."""
    with torch.no_grad():
        for tensor in weights(model):
            if locked:
                there = torch.empty_like(tensor.data, device=where, pin_memory=torch.cuda.is_available())
                there.copy_(tensor.data)
                tensor.data = there
            else:
                tensor.data = tensor.data.to(where, non_blocking=True)  # the forwards wait for it, on the same stream
