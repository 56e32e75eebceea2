"""A job as fal shows a request's result: in the API's answers to its client, and as the body of their webhooks.

A job that was requested over that API with a webhook has `MARK` in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from farm.domain.job import Job
from farm.domain.states import JobState
from farm.webhooks.payload import MAX_BYTES

MARK: Final = "fal.webhook"


def result(job: Job, urls: Sequence[str]) -> dict[str, Any]:
    """The result of a job that succeeded. ``urls`` are of its outputs, in their order."""
    return {
        "images": [
            {
                "url": url,
                "width": output.width,
                "height": output.height,
                "content_type": output.media_type,
                "file_size": output.size,
            }
            for url, output in zip(urls, job.outputs, strict=True)
        ],
        "seed": job.spec.seed,
        "prompt": job.spec.prompt,
        "has_nsfw_concepts": [False] * len(job.outputs),
        "timings": {},
    }


def encoded(job: Job, urls: Sequence[str]) -> bytes:
    """The body of a webhook, in UTF-8 and in fewer than `MAX_BYTES` bytes: where it is larger, the prompt is empty."""
    body: dict[str, Any] = {"request_id": job.id, "gateway_request_id": job.id}
    if job.state is JobState.SUCCEEDED:
        body |= {"status": "OK", "payload": result(job, urls)}
    else:
        message = "the request was canceled" if job.error is None else job.error.message
        body |= {"status": "ERROR", "error": message, "payload": {"detail": message}}
    text = _json(body)
    if len(text) >= MAX_BYTES and job.state is JobState.SUCCEEDED:
        body["payload"]["prompt"] = ""
        text = _json(body)
    return text


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
