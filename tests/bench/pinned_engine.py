"""The engine's process of `tests.bench.pinned`."""

from __future__ import annotations

from tests.bench.pinning import pin_engines
from workers import engine_child

if __name__ == "__main__":
    pin_engines()
    engine_child.main()
