"""Workers: who renders; drain, stop and resume."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path

from farm import lifecycle
from farm.api.auth import Operator, Reader
from farm.api.dependencies import Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import WorkerList, WorkerSchema

router: Final = APIRouter(prefix="/v1/workers", tags=["workers"], route_class=AuthenticatedRoute)

Name = Annotated[str, Path(description="The worker's name, `HOST/DEVICE`.", max_length=300)]


@router.get("", summary="List workers", responses=responses(*ALWAYS))
def list_workers(context: Context, _: Reader) -> WorkerList:
    """Every worker that ever joined, with its device, its jobs and its last heartbeat."""
    with context.store.begin() as unit:
        return WorkerList(data=[WorkerSchema.of(worker) for worker in unit.workers.all()])


@router.put("/{name:path}/drain", summary="Drain a worker", responses=responses(*ALWAYS, 404))
def drain_worker(context: Context, _: Operator, name: Name) -> WorkerSchema:
    """Let it finish its jobs, and dispatch no new ones to it, also after a restart. Draining again changes nothing."""
    with context.store.begin() as unit:
        return WorkerSchema.of(lifecycle.drain_worker(unit, name, "an operator asked for it"))


@router.put("/{name:path}/stop", summary="Stop a worker", responses=responses(*ALWAYS, 404, 409))
def stop_worker(context: Context, _: Operator, name: Name) -> WorkerSchema:
    """Drain it, and let its process end when it has finished what is on its device, or after its time to drain.

    The worker gets the order with its next heartbeat. A restarted process stays drained until it is resumed.
    """
    with context.store.begin() as unit:
        return WorkerSchema.of(lifecycle.stop_worker(unit, name, "an operator stopped it"))


@router.delete("/{name:path}/drain", summary="Resume a worker", responses=responses(*ALWAYS, 404))
def resume_worker(context: Context, _: Operator, name: Name) -> WorkerSchema:
    """Dispatch jobs to it again, and clear the reason why it was drained or stopped."""
    with context.store.begin() as unit:
        return WorkerSchema.of(lifecycle.resume_worker(unit, name))
