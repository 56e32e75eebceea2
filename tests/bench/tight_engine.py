"""The engine's process of `tests.bench.tight`."""

from __future__ import annotations

from workers import engine_child, model_cache

HOLDS_BYTES = 100_000_000  #: the built-in model has 39 MB

_init = model_cache.ModelCache.__init__


def _with_little_memory(self: model_cache.ModelCache, *args: object, **more: object) -> None:
    _init(self, *args, **more)  # type: ignore[arg-type]
    self._budget = HOLDS_BYTES


model_cache.ModelCache.__init__ = _with_little_memory  # type: ignore[method-assign]

if __name__ == "__main__":
    engine_child.main()
