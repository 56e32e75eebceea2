"""The estimator of a process: read from the last jobs that were rendered, and used again for some seconds."""

from __future__ import annotations

import threading
import time
from typing import Final

from farm.domain.estimate import Estimator
from farm.store.unit_of_work import UnitOfWork

KEEP_SECONDS: Final = 5.0  #: to make one reads some hundred jobs


class Estimates:
    """Keeps the estimator. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: Estimator | None = None
        self._until = 0.0

    def get(self, unit: UnitOfWork) -> Estimator:
        """An estimator that is not older than `KEEP_SECONDS`."""
        now = time.monotonic()
        with self._lock:
            if self._kept is not None and now < self._until:
                return self._kept
        made = unit.activity.estimator()
        with self._lock:
            self._kept, self._until = made, now + KEEP_SECONDS
        return made
