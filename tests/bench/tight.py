"""The farm's worker on a device that holds two of the built-in model, not three: ``celery -A tests.bench.tight``."""

from __future__ import annotations

from workers import engine_process
from workers.app import app

__all__ = ["app"]

engine_process.MODULE = "tests.bench.tight_engine"
