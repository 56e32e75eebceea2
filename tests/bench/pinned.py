"""The farm's own worker, whose engine thread has one processor for itself: ``celery -A tests.bench.pinned``.

On a machine without an accelerator that processor is the card: the same one that the engine has when it runs alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from workers.app import app
from workers.engine import Engine

__all__ = ["app", "pin"]

CARD = 0  #: the processor that is the card, where ``BENCH_CARD`` names none


def pin(run: Callable[[Engine], None]) -> Callable[[Engine], None]:
    """The engine's thread, on its processor; torch's kernels run on that thread where torch has one."""

    def pinned(engine: Engine) -> None:
        os.sched_setaffinity(0, {int(os.environ.get("BENCH_CARD", CARD))})
        run(engine)

    return pinned


Engine.run = pin(Engine.run)  # type: ignore[method-assign]
