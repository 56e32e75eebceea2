"""A job or a batch as server-sent events, from now to its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from farm.api.batch_schemas import BatchSchema
from farm.api.dependencies import AppContext
from farm.api.notifications import REREAD_SECONDS
from farm.api.schemas import JobSchema
from farm.domain.batch import Batch
from farm.domain.job import Job, Progress
from farm.domain.states import BATCH_EVENTS, HISTORY, JobState
from farm.services import waiting
from farm.store.events import BatchEvent, Event
from farm.store.tenants import Key

HEARTBEAT_SECONDS: Final = 15.0

#: One event of the stream, for the OpenAPI document.
EVENT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["job", "progress", *(kind.value for kind in HISTORY)]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string", "description": "Of an event of the history: what `Last-Event-ID` repeats."},
    },
}
#: One event of a batch's stream.
BATCH_EVENT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["batch", *(kind.value for kind in BATCH_EVENTS)]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string", "description": "Of all but `batch`: what `Last-Event-ID` repeats."},
    },
}


def position(last_event_id: str | None) -> int:
    """The event id in a ``Last-Event-ID``; 0, the beginning, for what is not an id of ours."""
    text = last_event_id or ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else 0


def response(context: AppContext, job: Job, after: int, key: Key) -> StreamingResponse:
    """The stream of a job's changes, with the history after event ``after``; it ends when the key is revoked."""
    return _streamed(_events(context, job, after, key))


def batch_response(context: AppContext, batch: Batch, after: int, key: Key) -> StreamingResponse:
    """The stream of a batch's changes, with its events after ``after``; it ends when the key is revoked."""
    return _streamed(_batch_events(context, batch, after, key))


def _streamed(events: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(
        events,
        media_type="text/event-stream",
        # no cache may keep it and no proxy may hold it back
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _batch_events(context: AppContext, batch: Batch, after: int, key: Key) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    sent: Batch | None = None
    sent_at = loop.time()
    with context.notifier.subscribe(batch.id) as changes:
        while True:
            now, history = await run_in_threadpool(_read_batch, context, batch, after, key)
            if now is None:
                return  # deleted, with its history, or the key was revoked
            parts: list[bytes] = []
            for event in history:
                body = {"at": event.created_at.isoformat(), **event.data}
                parts.append(_event(event.type.value, body, str(event.id)))
                after = event.id
            # its speed and the time left change with every look; that alone is no news
            if sent is None or replace(now, read_at=sent.read_at) != sent:
                parts.append(format_sse_event(event="batch", data_str=BatchSchema.of(now).model_dump_json()))
                sent = now
            if parts:
                yield b"".join(parts)
                sent_at = loop.time()
            if now.finished_at is not None or changes.closing:
                return
            if loop.time() - sent_at >= HEARTBEAT_SECONDS:
                yield KEEPALIVE_COMMENT
                sent_at = loop.time()
            await changes.wait(REREAD_SECONDS)


def _read_batch(context: AppContext, batch: Batch, after: int, key: Key) -> tuple[Batch | None, list[BatchEvent]]:
    with context.store.begin() as unit:
        if not unit.tenants.is_live(key.id):
            return None, []
        # the batch first, as in `_read`
        now = unit.batches.get(batch.id, batch.tenant_id)
        return now, unit.events.of_batch(batch.id, after)


async def _events(context: AppContext, job: Job, after: int, key: Key) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    sent: tuple[JobState, int, bool] | None = None
    stepped: Progress | None = None
    sent_at = loop.time()
    with context.notifier.subscribe(job.id) as changes:
        while True:
            now, history = await run_in_threadpool(_read, context, job.id, after, key)
            if now is None:
                return  # deleted, with its history, or the key was revoked
            parts: list[bytes] = []
            if sent is None:
                parts.append(await run_in_threadpool(_job, context, now))
                sent = _face(now)
            for event in history:
                parts.append(_history(event))
                after = event.id
            if _face(now) != sent:
                parts.append(await run_in_threadpool(_job, context, now))
                sent = _face(now)
            if now.progress is not None and now.progress != stepped:
                body: dict[str, Any] = {"step": now.progress.step, "steps": now.progress.steps}
                if changes.preview is not None:
                    body["preview"], changes.preview = changes.preview, None
                parts.append(_event("progress", body))
            stepped = now.progress
            if parts:
                yield b"".join(parts)
                sent_at = loop.time()
            if now.state.terminal or changes.closing:
                return
            if loop.time() - sent_at >= HEARTBEAT_SECONDS:
                yield KEEPALIVE_COMMENT
                sent_at = loop.time()
            await changes.wait(REREAD_SECONDS)


def _read(context: AppContext, job_id: str, after: int, key: Key) -> tuple[Job | None, list[Event]]:
    with context.store.begin() as unit:
        if not unit.tenants.is_live(key.id):
            return None, []
        # The job first: an end that is seen in the job has its event by then, so the stream never ends without it.
        job = unit.jobs.get(job_id)
        return job, unit.events.of_job(job_id, after)


def _face(job: Job) -> tuple[JobState, int, bool]:
    return job.state, job.epoch, job.cancel_requested


def _job(context: AppContext, job: Job) -> bytes:
    body = JobSchema.of(waiting.explain(context, job), context.storage, context.settings).model_dump_json()
    return format_sse_event(event="job", data_str=body)


def _history(event: Event) -> bytes:
    body = {"job": event.job_id, "epoch": event.epoch, "at": event.created_at.isoformat(), **event.data}
    return _event(event.type.value, body, str(event.id))


def _event(name: str, body: dict[str, Any], event_id: str | None = None) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(body), id=event_id)
