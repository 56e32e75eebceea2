"""What was begun and not finished: moving a batch's jobs, letting dependents follow, removing objects and models.

Each piece is a transaction of its own and begins with a look at the rows, so it does not matter which process goes on,
whether several do at once, or how often one is killed.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import structlog

from farm import lifecycle
from farm.errors import FarmError
from farm.objects.storage import Storage
from farm.services import model_uploads
from farm.store.unit_of_work import Store

log = structlog.get_logger(__name__)

INTERVAL_SECONDS: Final = 30.0  #: between two runs, when none is requested
AT_ONCE: Final = 500  #: objects removed by one request
SWEEP_SECONDS: Final = 3600.0  #: between two looks for files that no model needs
REMOVED_MODEL_SECONDS: Final = 600.0  #: a removed model stays known for so long: a request may still submit its job


class CleanupThread:
    """One thread of the API's process."""

    def __init__(self, store: Store, storage: Storage) -> None:
        self._store = store
        self._storage = storage
        self._wanted = threading.Event()
        self._stopping = False
        self._sweep_at = time.monotonic() + SWEEP_SECONDS
        self._thread = threading.Thread(target=self._run, name="cleanup", daemon=True)

    def start(self) -> None:
        """Begin, with what earlier processes left."""
        self._wanted.set()
        self._thread.start()

    def wake(self) -> None:
        """Look now: there is something to do."""
        self._wanted.set()

    def stop(self) -> None:
        """End after the piece in hand; blocks for at most five seconds."""
        self._stopping = True
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def run_once(self) -> None:
        """Do all that there is to do. Raises FarmError where a server does not answer; the next look goes on."""
        with self._store.begin() as unit:
            unfinished = unit.batches.pending_changes()
        for batch_id, deleted in unfinished:
            step = lifecycle.purge_batch if deleted else lifecycle.propagate_batch
            while not self._stopping:
                self._propagate_ends()
                with self._store.begin() as unit:
                    if step(unit, batch_id):
                        break
            log.info("a batch was removed", action="batch_cleaned_up", batch=batch_id, deleted=deleted)
        with self._store.begin() as unit:
            lifecycle.remove_checkpoints(unit)
            for model in unit.models.delete_unused(REMOVED_MODEL_SECONDS):
                log.info("a removed model is forgotten", action="model_forgotten", model=model.id)
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            model_uploads.sweep(self._store, self._storage)
        self._propagate_ends()
        while not self._stopping and self._remove():
            pass

    def _propagate_ends(self) -> None:
        """Let all jobs follow whose input has ended."""
        following = True
        while following and not self._stopping:
            with self._store.begin() as unit:
                following = lifecycle.propagate_end(unit)

    def _remove(self) -> bool:
        """Remove some objects and forget their names, in that order; returns whether there were any."""
        with self._store.begin() as unit:
            object_keys = unit.pending_deletions.take(AT_ONCE)
            found: list[str] = []
            for key in object_keys:
                found += [one.key for one in self._storage.list(key)] if key.endswith("/") else [key]
            for start in range(0, len(found), AT_ONCE):
                self._storage.delete_many(found[start : start + AT_ONCE])
            unit.pending_deletions.remove(object_keys)
        return bool(object_keys)

    def _run(self) -> None:
        while not self._stopping:
            self._wanted.wait(INTERVAL_SECONDS)
            self._wanted.clear()
            if self._stopping:
                return
            try:
                self.run_once()
            except FarmError as error:
                log.warning("cannot finish what was begun", action="cleanup_failed", error=str(error))
            except Exception:
                log.exception("the cleanup failed", action="cleanup_failed")
