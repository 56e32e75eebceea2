"""The farm at a glance: its pace, its queue, its devices, its latest images; and the switch that stops it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from farm.api.dependencies import AppContext, Context
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.dashboard.session import User
from farm.domain.states import JobState
from farm.domain.worker import Worker, WorkerState
from farm.services import pauses
from farm.store.activity_stats import ActivityCounts
from farm.store.dashboard_queries import JobAtWorker
from farm.store.tenants import Scope

LINK: Final = Link("Farm", "Overview", HOME, 0)
router: Final = APIRouter(prefix=HOME, include_in_schema=False, route_class=PageRoute)

DEVICES: Final = 120  #: cells that are drawn; more workers are on their own page
LATEST: Final = 24
PACE_MINUTES: Final = 5  #: that the images per minute are measured over
DAY: Final = 24 * 3600
QUARTERS: Final = 96  #: stretches of the day's chart


@dataclass(frozen=True)
class DeviceTile:
    """A device and what it is doing."""

    worker: Worker
    jobs: tuple[JobAtWorker, ...]  #: running, then waiting at the worker

    @property
    def running(self) -> JobAtWorker | None:
        """The job it has rendered longest."""
        return next((job for job in self.jobs if job.state is JobState.RUNNING), None)

    @property
    def waiting(self) -> int:
        """Jobs at the worker that its device has not started."""
        return sum(job.state is not JobState.RUNNING for job in self.jobs)


@router.get("")
def overview(request: Request, context: Context, user: CurrentUser) -> Response:
    """The page."""
    with context.store.begin() as unit:
        day = unit.activity.counts(DAY, QUARTERS, user.tenant)
    return render(request, "overview.html", chart=_chart(day), day=day, **_now(context, user), **_latest(context, user))


@router.get("/now")
def now(request: Request, context: Context, user: CurrentUser) -> Response:
    """The numbers and the devices, as they are now."""
    return render(request, "overview_now.html", **_now(context, user))


@router.get("/latest")
def latest(request: Request, context: Context, user: CurrentUser) -> Response:
    """The latest images."""
    return render(request, "overview_latest.html", **_latest(context, user))


@router.get("/pace.json")
def pace(context: Context, user: CurrentUser) -> Response:
    """The day's chart, as columns for uPlot."""
    with context.store.begin() as unit:
        day = unit.activity.counts(DAY, QUARTERS, user.tenant)
    return Response(json.dumps(_chart(day)), media_type="application/json", headers={"Cache-Control": "no-store"})


@router.post("/pause")
def pause(context: Context, user: CurrentUser) -> Response:
    """Stop dispatch."""
    user.require(Scope.OPERATE, Scope.ADMIN)
    pauses.pause_farm(context, user.key.name)
    return see(HOME, "The farm is paused. Jobs at workers are finished; no other job is dispatched.")


@router.post("/resume")
def resume(context: Context, user: CurrentUser) -> Response:
    """Go on."""
    user.require(Scope.OPERATE, Scope.ADMIN)
    pauses.resume_farm(context)
    return see(HOME, "The farm is resumed.")


def _latest(context: AppContext, user: User) -> dict[str, Any]:
    with context.store.begin() as unit:
        return {"images": unit.activity.latest_outputs(LATEST, user.tenant)}


def _now(context: AppContext, user: User) -> dict[str, Any]:
    with context.store.begin() as unit:
        hour = unit.activity.counts(3600, 60, user.tenant)
        queue = unit.dashboard_queries.queue_totals(user.tenant)
        held = unit.dashboard_queries.held_jobs(user.tenant)
        workers = [one for one in unit.workers.all() if one.state is not WorkerState.OFFLINE]
        stopped = unit.pauses.now()
        estimator = unit.activity.estimator()
        moment = unit.now()
    at: dict[str, list[JobAtWorker]] = {}
    for job in sorted(held, key=lambda job: job.state is not JobState.RUNNING):
        at.setdefault(job.worker, []).append(job)
    cells = [DeviceTile(one, tuple(at.get(one.info.name, ()))) for one in workers]
    cells.sort(key=lambda cell: (cell.running is None, cell.worker.info.name))
    return {
        "per_minute": sum(one.outputs for one in hour.buckets[:PACE_MINUTES]) / PACE_MINUTES,
        "hour": hour,
        "queue": queue,
        "oldest": None if queue.oldest is None else max(0.0, (moment - queue.oldest).total_seconds()),
        "eta": estimator.seconds(queue.costs) if queue.jobs else None,
        "cells": cells[:DEVICES],
        "workers": len(workers),
        "busy": sum(cell.running is not None for cell in cells),
        "running": sum(job.state is JobState.RUNNING for job in held),
        "stopped": stopped,
        "moment": moment,
    }


def _chart(day: ActivityCounts) -> dict[str, Any]:
    """Columns, oldest first: minutes before now, images per minute, failed jobs per minute."""
    stretch = day.seconds / len(day.buckets)
    ordered = list(reversed(day.buckets))
    return {
        "before": [round((one.age + 0.5) * stretch) for one in ordered],
        "images": [round(one.outputs / (stretch / 60), 2) for one in ordered],
        "failed": [round(sum(one.failed.values()) / (stretch / 60), 2) for one in ordered],
    }
