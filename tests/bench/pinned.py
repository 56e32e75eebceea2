"""The farm's own worker, whose engine has a processor for itself: ``celery -A tests.bench.pinned``."""

from __future__ import annotations

from tests.bench.pinning import pin_engines
from workers.app import app

__all__ = ["app"]

pin_engines()
