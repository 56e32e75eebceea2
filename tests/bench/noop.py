"""A worker whose pipeline does nothing, for measuring what everything else costs: ``celery -A tests.bench.noop``.

It is the farm's own worker (claim, engine, encode, upload, commit) with one thing replaced: loading any model gives a
diffusers pipeline that returns a black image without a step.
"""

from __future__ import annotations

from workers import engine_process
from workers.app import app

__all__ = ["app"]

engine_process.MODULE = "tests.bench.noop_engine"
