"""A job as Replicate shows a prediction: in the API's answers to its clients, and as the body of their webhooks.

The URL of that API for the reader of a webhook that was requested over it is in the job's metadata, under `BASE`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from farm.domain.job import Job
from farm.domain.states import JobState
from farm.webhooks.payload import MAX_BYTES, stamp

BASE: Final = "replicate.base"
OWNER: Final = "farm"  #: of models whose ids name none

_STATUS: Final = {
    JobState.PENDING: "starting",
    JobState.QUEUED: "starting",
    JobState.DISPATCHED: "starting",
    JobState.RUNNING: "processing",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELED: "canceled",
}
_BAR: Final = 10  #: characters


def reference(model_id: str) -> str:
    """A model's id as ``owner/name``."""
    return model_id if "/" in model_id else f"{OWNER}/{model_id}"


def prediction(job: Job, urls: Sequence[str], base: str, version: str = "") -> dict[str, Any]:
    """The prediction. ``urls`` are of the job's outputs, in their order; ``base`` is the API's own URL."""
    given = job.spec.request()
    for name in ("task", "model"):
        given.pop(name, None)
    own = f"{base}/v1/predictions/{job.id}"
    metrics = {}
    if job.started_at is not None and job.finished_at is not None:
        metrics["predict_time"] = (job.finished_at - job.started_at).total_seconds()
    if job.finished_at is not None:
        metrics["total_time"] = (job.finished_at - job.created_at).total_seconds()
    started = job.started_at or job.claimed_at if job.state not in (JobState.PENDING, JobState.QUEUED) else None
    failed = job.state is JobState.FAILED and job.error is not None
    return {
        "id": job.id,
        "model": reference(job.spec.model),
        "version": version or job.spec.model,
        "status": _STATUS[job.state],
        "input": given,
        "output": list(urls) if job.state is JobState.SUCCEEDED else None,
        "logs": _logs(job),
        "error": job.error.message if failed and job.error is not None else None,
        "metrics": metrics,
        "data_removed": False,
        "created_at": stamp(job.created_at),
        "started_at": None if started is None else stamp(started),
        "completed_at": None if job.finished_at is None else stamp(job.finished_at),
        "urls": {"get": own, "cancel": f"{own}/cancel"},
    }


def _logs(job: Job) -> str:
    """How far it is, in the form that Replicate's clients read as progress."""
    if job.waiting_reason is not None:
        return f"Waits: {job.waiting_reason}.\n"
    if job.progress is None or not job.progress.steps:
        return ""
    step, steps = job.progress.step, job.progress.steps
    done = _BAR * step // steps
    return f"{100 * step // steps:3d}%|{'█' * done}{' ' * (_BAR - done)}| {step}/{steps}\n"


def encoded(job: Job, urls: Sequence[str]) -> bytes:
    """The body of a webhook, in UTF-8 and in fewer than `MAX_BYTES` bytes: where it is larger, prompts are left out."""
    shown = prediction(job, urls, job.metadata.get(BASE, ""))
    text = _json(shown)
    if len(text) >= MAX_BYTES:
        shown["input"] = {name: value for name, value in shown["input"].items() if "prompt" not in name}
        text = _json(shown)
    return text


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
