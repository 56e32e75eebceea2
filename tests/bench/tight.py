"""The farm's worker on a device that holds two of the built-in model, not three: ``celery -A tests.bench.tight``."""

from __future__ import annotations

from workers import model_cache
from workers.app import app

__all__ = ["app"]

HOLDS_BYTES = 100_000_000  #: the built-in model has 39 MB

_init = model_cache.ModelCache.__init__


def _with_little_memory(self: model_cache.ModelCache, *args: object, **more: object) -> None:
    _init(self, *args, **more)  # type: ignore[arg-type]
    self._budget = HOLDS_BYTES


model_cache.ModelCache.__init__ = _with_little_memory  # type: ignore[method-assign]
