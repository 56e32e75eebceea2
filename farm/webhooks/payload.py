"""The JSON payloads of webhooks.

A payload is built anew for each attempt from the stored rows. A finished job never changes, and an event on the
way there keeps its data in its own row, so all attempts of a delivery carry the same data; only the outputs' URLs are
fresh, because a signed URL of the first attempt would have expired at a later one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from pydantic_core import to_json

from farm.domain.job import Job, Output, Progress
from farm.domain.states import EventType, JobState

#: The parameters of a job that hold objects of any size.
_OBJECTS: Final = frozenset({"parameters", "scheduler_options"})
MAX_BYTES: Final = 20_000  #: a body is smaller than this (Standard Webhooks recommends under 20 kB)
MARKER: Final = "… [shortened]"
#: Characters that prompts, metadata and the error's message keep, tried one after the other until the body fits.
_LIMITS: Final = (None, 2_000, 500, 100, 20)


def job_payload(
    kind: EventType,
    occurred_at: datetime,
    sequence: int,
    job: Job,
    presign: Callable[[str], str],
    expires_at: datetime,
    event_data: Mapping[str, Any] | None = None,
) -> bytes:
    """The JSON of one event of a job, in UTF-8 and in fewer than `MAX_BYTES` bytes.

    Where it would be larger, ``truncated`` is true: prompts and metadata are shortened and end in `MARKER`, then
    metadata, the pipeline's own parameters and at last URLs are left out. The job's own page in the API has everything.
    ``presign`` gives the URL of an object's key, which works until about ``expires_at``. ``event_data`` is what the
    event's row says; for an event of a running job it decides what is shown, whatever the job's state is now.
    """
    if kind in (EventType.STARTED, EventType.PROGRESS):
        job = in_progress(job, event_data or {})
    urls = [presign(output.key) for output in job.outputs]
    shrunk: list[tuple[int | None, bool, bool]] = [(limit, True, True) for limit in _LIMITS]
    shrunk += [(20, False, True), (20, False, False)]
    for step, (limit, metadata, with_urls) in enumerate(shrunk):
        data = _job(job, urls if with_urls else [None] * len(urls), expires_at, limit, metadata)
        encoded = _encoded(kind, occurred_at, sequence, data, truncated=step > 0)
        if len(encoded) < MAX_BYTES:
            return encoded
    raise AssertionError("a body without texts and URLs is always small enough")


def event_payload(kind: EventType, occurred_at: datetime, sequence: int, event_data: Mapping[str, Any]) -> bytes:
    """The JSON of one event of no job: what its row says, which is small."""
    return _encoded(kind, occurred_at, sequence, dict(event_data), truncated=False)


def _encoded(kind: EventType, occurred_at: datetime, sequence: int, data: dict[str, Any], *, truncated: bool) -> bytes:
    event: dict[str, Any] = {
        "type": kind.value,
        "timestamp": stamp(occurred_at),
        "data": data,
        "sequence": sequence,
    }
    if truncated:
        event["truncated"] = True
    return to_json(event)  # a third of what the standard library takes, at a thousand bodies a second


def in_progress(job: Job, event_data: Mapping[str, Any]) -> Job:
    """The job as it was when the event happened."""
    return replace(
        job,
        state=JobState.RUNNING,
        outputs=(),
        error=None,
        attempts=event_data.get("attempt", job.attempts),
        worker=event_data.get("worker", job.worker),
        progress=Progress(event_data["step"], event_data["steps"]) if "step" in event_data else None,
        finished_at=None,
    )


def _job(
    job: Job, urls: list[str] | list[None], expires_at: datetime, limit: int | None, metadata: bool
) -> dict[str, Any]:
    parameters = job.spec.request()
    if not metadata:  # what is of any size
        for name in _OBJECTS & parameters.keys():
            del parameters[name]
    for values in (parameters, parameters.get("parameters", {})):
        for name, value in values.items():
            if isinstance(value, str):
                values[name] = _shortened(value, limit)
    for name in ("task", "model"):  # they stand beside
        parameters.pop(name, None)
    in_progress: dict[str, Any] = {}
    if not job.state.terminal and job.progress is not None:
        in_progress["progress"] = {"step": job.progress.step, "steps": job.progress.steps}
    return in_progress | {
        "id": job.id,
        "state": job.state.value,
        "task": job.spec.task,
        "model": job.spec.model,
        "custom_id": job.custom_id,
        "metadata": {name: _shortened(value, limit) for name, value in job.metadata.items()} if metadata else {},
        "parameters": parameters,
        "outputs": [_output(output, url, expires_at) for output, url in zip(job.outputs, urls, strict=True)],
        "depends_on": list(job.depends_on),
        "error": None
        if job.error is None
        else {"code": job.error.code, "message": _shortened(job.error.message, limit)},
        "warnings": list(job.warnings),
        "attempts": job.attempts,
        "worker": job.worker,
        "created_at": stamp(job.created_at),
        "finished_at": None if job.finished_at is None else stamp(job.finished_at),
    }


def _output(output: Output, url: str | None, expires_at: datetime) -> dict[str, Any]:
    return {
        "media_type": output.media_type,
        "size": output.size,
        "sha256": output.sha256,
        "seed": output.seed,
        "width": output.width,
        "height": output.height,
        "metadata": output.metadata,
        "url": url,
        "url_expires_at": None if url is None else stamp(expires_at),
    }


def _shortened(text: str, limit: int | None) -> str:
    return text if limit is None or len(text) <= limit else text[:limit] + MARKER


def stamp(moment: datetime) -> str:
    """A time as the API writes it: ISO 8601 in UTC, with milliseconds and ``Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
