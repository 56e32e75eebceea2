"""The farm's own worker, whose engine has a processor for itself: ``celery -A tests.bench.pinned``."""

from __future__ import annotations

from workers import engine_process
from workers.app import app

__all__ = ["app"]

engine_process.MODULE = "tests.bench.pinned_engine"
