"""Batches as a whole: follow, cancel, pause, change, retry and delete them, and read their results."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Final

from farm import lifecycle
from farm.domain.batch import Batch, BatchContents
from farm.domain.states import JobState, Priority
from farm.errors import NotFound
from farm.services.context import ServiceContext
from farm.store.batches import FinishedJob

PAGE: Final = 500  #: jobs read in one transaction
PROPAGATE_SECONDS: Final = 5.0  #: how long a request changes jobs of a batch; the clean-up thread does the rest


def get(context: ServiceContext, tenant_id: str, batch_id: str) -> Batch:
    """A batch of the tenant. Raises `NotFound`."""
    with context.store.look() as unit:
        batch = unit.batches.get(batch_id, tenant_id)
    if batch is None:
        raise NotFound("batch", batch_id)
    return batch


def ended_jobs(context: ServiceContext, batch_id: str, states: Collection[JobState]) -> Iterator[list[FinishedJob]]:
    """A batch's jobs in these terminal states, in the order of the batch; each page in a transaction of its own."""
    after = 0
    while True:
        with context.store.begin() as unit:
            page = unit.batches.results(batch_id, states, after, PAGE)
        if page:
            yield page
        if len(page) < PAGE:
            return
        after = page[-1].seq


# -- changing ----------------------------------------------------------------------------------------------------------
# A change is one row, and takes effect at once. The rows of the batch's jobs are changed after it, in transactions of
# their own: by this request while it takes no longer than `PROPAGATE_SECONDS`, and then by the clean-up thread.


def cancel(context: ServiceContext, tenant_id: str, batch_id: str) -> Batch:
    """Stop every job of a batch; canceling again changes nothing. Raises `NotFound` and `Conflict`."""
    with context.store.begin() as unit:
        lifecycle.cancel_batch(unit, tenant_id, batch_id)
    return _propagated(context, tenant_id, batch_id)


def pause(context: ServiceContext, tenant_id: str, batch_id: str, by: str | None = None) -> Batch:
    """Dispatch none of a batch's jobs; pausing again changes nothing. Raises `NotFound` and `Conflict`."""
    with context.store.begin() as unit:
        lifecycle.pause_batch(unit, tenant_id, batch_id, by)
    return _propagated(context, tenant_id, batch_id)


def resume(context: ServiceContext, tenant_id: str, batch_id: str) -> Batch:
    """Dispatch a paused batch's jobs again; a batch that is not paused stays as it is. Raises `NotFound`."""
    with context.store.begin() as unit:
        lifecycle.resume_batch(unit, tenant_id, batch_id)
    return _propagated(context, tenant_id, batch_id)


def change(
    context: ServiceContext,
    tenant_id: str,
    batch_id: str,
    *,
    name: str | None = None,
    metadata: dict[str, str] | None = None,
    priority: Priority | None = None,
) -> Batch:
    """Change what is not None. Raises `NotFound`, and `Conflict` for the priority of a finished batch."""
    with context.store.begin() as unit:
        batch = lifecycle.change_batch(unit, tenant_id, batch_id, name=name, metadata=metadata, priority=priority)
    return batch if priority is None else _propagated(context, tenant_id, batch_id)


def retry(context: ServiceContext, tenant_id: str, batch_id: str) -> tuple[Batch, bool]:
    """Submit a finished batch's failed and canceled jobs again as a new batch, once.

    Returns it, and whether this call made it. Raises `NotFound`, `Conflict` and `QuotaExceeded`.
    """
    with context.store.begin() as unit:
        return lifecycle.retry_batch(unit, tenant_id, batch_id)


def contents(context: ServiceContext, tenant_id: str, batch_id: str) -> BatchContents:
    """What deleting a finished batch removes. Raises `NotFound` and `Conflict`."""
    with context.store.begin() as unit:
        return lifecycle.batch_contents(unit, tenant_id, batch_id)


def delete(context: ServiceContext, tenant_id: str, batch_id: str) -> BatchContents:
    """Delete a finished batch with its jobs and their outputs; returns what is removed.

    Nobody sees the batch from now on; the clean-up thread deletes the rows, then the objects. Raises `NotFound` and
    `Conflict`.
    """
    with context.store.begin() as unit:
        found = lifecycle.batch_contents(unit, tenant_id, batch_id)
        lifecycle.delete_batch(unit, tenant_id, batch_id)
    context.cleanup.wake()
    return found


def _propagated(context: ServiceContext, tenant_id: str, batch_id: str) -> Batch:
    """The batch after its jobs have followed a change, or after `PROPAGATE_SECONDS`."""
    until = time.monotonic() + PROPAGATE_SECONDS
    while True:
        with context.store.begin() as unit:
            if lifecycle.propagate_batch(unit, batch_id):
                break
        if time.monotonic() > until:
            context.cleanup.wake()
            break
        time.sleep(0.01)
    return get(context, tenant_id, batch_id)
