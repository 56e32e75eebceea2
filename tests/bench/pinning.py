"""The engine's thread on a processor of its own: on a machine without an accelerator that processor is the device."""

from __future__ import annotations

import os

from workers.engine import Engine


def pin_engines() -> None:
    """Let every engine of this process run on the core ``BENCH_DEVICE``; torch's kernels run on its thread, too."""
    run = Engine.run

    def pinned(engine: Engine) -> None:
        os.sched_setaffinity(0, {int(os.environ["BENCH_DEVICE"])})
        run(engine)

    Engine.run = pinned  # type: ignore[method-assign, assignment]
