"""What is sent to the farm, and when it is sent again: pure, so that a client of any kind of I/O can use it."""

from __future__ import annotations

import io
import os
import random
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

from farm.errors import BadInput

#: The picture fields of a request, by the short name that people use for them.
PICTURE_FIELDS: Final = {"image": "image", "mask": "mask_image", "depth": "depth_map"}

JSONL: Final = "application/jsonl"
CSV: Final = "text/csv"

RETRIED: Final = frozenset({429, 502, 503, 504})  #: answers that say: try again
BULK_SECONDS: Final = 600.0  #: the most that the farm takes to store or stop a whole batch
LONGEST_DELAY: Final = 60.0  #: seconds; the most that a Retry-After is honoured for

_REFERENCE: Final = re.compile(r"file_[0-9a-f]{32}|sha256:[0-9a-f]{64}|https?://.+|data:.+", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One request to the API."""

    method: str
    path: str
    repeatable: bool = True  #: sending it twice does no more than sending it once
    json: object = None
    params: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    file: tuple[str, bytes] | None = None  #: name and content of the one file of a form
    content: Callable[[], Iterable[bytes]] | None = None  #: a body that is streamed, from its beginning at each call
    patience: float | None = None  #: seconds to wait for the answer, where it may take longer than others


def submit(body: Mapping[str, Any], idempotency_key: str | None = None) -> Call:
    """Accept a job. Its key makes the call repeatable: a second one with the same key returns the first one's job."""
    return Call(
        "POST", "/v1/jobs", json=dict(body), headers={"Idempotency-Key": idempotency_key or f"farm-{uuid.uuid4().hex}"}
    )


def upload(name: str, data: bytes) -> Call:
    """Store a picture; the same bytes again give the same file."""
    return Call("POST", "/v1/files", file=(name, data))


def get(job_id: str) -> Call:
    """Look at a job."""
    return Call("GET", f"/v1/jobs/{_segment(job_id, 'job')}")


def page(filters: Mapping[str, Any], cursor: str | None) -> Call:
    """One page of jobs. A filter may be a list of values; None filters nothing."""
    return Call("GET", "/v1/jobs", params=_params({**filters, "cursor": cursor}))


def cancel(job_id: str) -> Call:
    """Stop a job; stopping it again changes nothing."""
    return Call("POST", f"/v1/jobs/{_segment(job_id, 'job')}/cancel")


def retry(job_id: str) -> Call:
    """Submit a failed or canceled job again, as a new one: each call makes one."""
    return Call("POST", f"/v1/jobs/{_segment(job_id, 'job')}/retry", repeatable=False)


def events(job_id: str, last_event_id: str | None) -> Call:
    """Follow a job from after that event."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    return Call("GET", f"/v1/jobs/{_segment(job_id, 'job')}/events", headers=headers)


def submit_batch(
    content: Callable[[], Iterable[bytes]],
    content_type: str,
    query: Mapping[str, Any],
    idempotency_key: str | None = None,
    *,
    repeatable: bool = True,
) -> Call:
    """Accept many jobs in one streamed body. Its key makes the call repeatable, if the body can be read again."""
    key = idempotency_key or f"farm-{uuid.uuid4().hex}"
    return Call(
        "POST",
        "/v1/batches",
        repeatable=repeatable,
        params=_params(query),
        headers={"Idempotency-Key": key, "Content-Type": content_type},
        content=content,
        patience=BULK_SECONDS,
    )


def batch(batch_id: str) -> Call:
    """Look at a batch."""
    return Call("GET", f"/v1/batches/{_segment(batch_id, 'batch')}")


def batches(limit: int, cursor: str | None) -> Call:
    """One page of batches."""
    return Call("GET", "/v1/batches", params=_params({"limit": limit, "cursor": cursor}))


def batch_lines(batch_id: str, what: str) -> Call:
    """A batch's ``results`` or ``errors``, as JSON lines."""
    return Call("GET", f"/v1/batches/{_segment(batch_id, 'batch')}/{what}", patience=BULK_SECONDS)


def cancel_batch(batch_id: str) -> Call:
    """Stop a batch; stopping it again changes nothing."""
    return Call("POST", f"/v1/batches/{_segment(batch_id, 'batch')}/cancel", patience=BULK_SECONDS)


def retry_batch(batch_id: str) -> Call:
    """Submit a batch's failed and canceled jobs again, as a new batch: each call makes one."""
    return Call("POST", f"/v1/batches/{_segment(batch_id, 'batch')}/retry", repeatable=False, patience=BULK_SECONDS)


def models() -> Call:
    """What there is to render with."""
    return Call("GET", "/v1/models")


def workers() -> Call:
    """Who renders."""
    return Call("GET", "/v1/workers")


def keys() -> Call:
    """The tenant's API keys."""
    return Call("GET", "/v1/keys")


def make_key(name: str, scopes: tuple[str, ...]) -> Call:
    """A new API key: each call makes one."""
    body: dict[str, Any] = {"name": name} | ({"scopes": list(scopes)} if scopes else {})
    return Call("POST", "/v1/keys", repeatable=False, json=body)


def revoke_key(key_id: str) -> Call:
    """End a key."""
    return Call("DELETE", f"/v1/keys/{_segment(key_id, 'key')}")


def endpoints(cursor: str | None, filters: Mapping[str, Any]) -> Call:
    """One page of the webhook endpoints."""
    return Call("GET", "/v1/webhooks/endpoints", params=_params({**filters, "cursor": cursor}))


def add_endpoint(body: Mapping[str, Any]) -> Call:
    """A new webhook endpoint: each call makes one."""
    return Call("POST", "/v1/webhooks/endpoints", repeatable=False, json=dict(body))


def endpoint(endpoint_id: str) -> Call:
    """Look at an endpoint."""
    return Call("GET", _endpoint(endpoint_id))


def edit_endpoint(endpoint_id: str, changes: Mapping[str, Any]) -> Call:
    """Change an endpoint."""
    return Call("PATCH", _endpoint(endpoint_id), json=dict(changes))


def remove_endpoint(endpoint_id: str) -> Call:
    """Delete an endpoint. Not repeatable: the second call finds nothing."""
    return Call("DELETE", _endpoint(endpoint_id), repeatable=False)


def endpoint_secret(endpoint_id: str) -> Call:
    """Read an endpoint's secret."""
    return Call("GET", _endpoint(endpoint_id) + "/secret")


def rotate_secret(endpoint_id: str, overlap_seconds: int | None) -> Call:
    """Give an endpoint a new secret: each call does."""
    params = () if overlap_seconds is None else (("overlap_seconds", str(overlap_seconds)),)
    return Call("POST", _endpoint(endpoint_id) + "/rotate", repeatable=False, params=params)


def test_endpoint(endpoint_id: str) -> Call:
    """Send a test event: each call sends one."""
    return Call("POST", _endpoint(endpoint_id) + "/test", repeatable=False)


def deliveries(filters: Mapping[str, Any], cursor: str | None) -> Call:
    """One page of the deliveries."""
    return Call("GET", "/v1/webhooks/deliveries", params=_params({**filters, "cursor": cursor}))


def delivery(delivery_id: str) -> Call:
    """Look at a delivery."""
    return Call("GET", f"/v1/webhooks/deliveries/{_segment(delivery_id, 'delivery')}")


def resend(delivery_id: str) -> Call:
    """Send a delivery again; the receiver knows it by its id."""
    return Call("POST", f"/v1/webhooks/deliveries/{_segment(delivery_id, 'delivery')}/resend")


def resend_dead(filters: Mapping[str, Any]) -> Call:
    """Send dead deliveries again. Not repeatable: the count of a second call would be another."""
    body = {name: _text(value) for name, value in filters.items() if value is not None}
    return Call("POST", "/v1/webhooks/deliveries/resend", repeatable=False, json=body)


def delay(attempt: int, retry_after: str | None = None, now: float = 0.0) -> float:
    """Seconds to wait before trying again after ``attempt`` (0-based) failed.

    The server's ``Retry-After`` (seconds, or a date, which is compared to ``now``) goes before our own schedule; both
    get some jitter, so that clients who failed together do not come back together.
    """
    asked = _seconds(retry_after, now)
    if asked is not None:
        return min(asked, LONGEST_DELAY) * random.uniform(1.0, 1.1)  # noqa: S311 - not a secret
    return min(0.25 * 2.0**attempt, 8.0) * random.uniform(0.5, 1.0)  # noqa: S311


def infer_task(*, image: bool, mask: bool, depth: bool) -> str:
    """The task that the given inputs mean. Raises `BadInput` when they mean none."""
    if mask and depth:
        raise BadInput.of("depth", None, "is for depth-to-image and --mask for inpainting: give one of them")
    if (mask or depth) and not image:
        name = "mask" if mask else "depth"
        raise BadInput.of("image", None, f"is required beside {name}: the picture that the {name} belongs to")
    if mask:
        return "inpainting"
    if depth:
        return "depth-to-image"
    return "image-to-image" if image else "text-to-image"


def reference(picture: object) -> str | None:
    """The picture itself, if it is a reference that the farm understands; None if its bytes must be uploaded."""
    return picture if isinstance(picture, str) and _REFERENCE.fullmatch(picture) else None


def read_picture(field_name: str, picture: object) -> tuple[str, bytes]:
    """A name and the encoded bytes of a picture that must be uploaded. Raises `BadInput` if it cannot be read."""
    if isinstance(picture, bytes):
        return field_name, picture
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        try:
            return path.name, path.read_bytes()
        except OSError as error:
            raise BadInput.of(field_name, str(path), f"{path} cannot be read: {error.strerror}") from error
    if hasattr(picture, "save") and hasattr(picture, "mode"):  # a Pillow image, without importing Pillow
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", compress_level=1)
        return f"{field_name}.png", buffer.getvalue()
    raise BadInput.of(field_name, type(picture).__name__, "must be a path, bytes, a Pillow image or a reference")


def _params(given: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    params: list[tuple[str, str]] = []
    for name, value in given.items():
        if value is None:
            continue
        values = value if isinstance(value, list | tuple | set | frozenset) else (value,)
        params += [(name, _text(one)) for one in values]
    return tuple(params)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


def _segment(name: str, kind: str) -> str:
    """An id as one segment of a path: what is no id must not reach another route."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        raise BadInput.of(kind, name, f"{name!r} is no {kind} id")
    return name


def _endpoint(endpoint_id: str) -> str:
    return f"/v1/webhooks/endpoints/{_segment(endpoint_id, 'endpoint')}"


def _seconds(retry_after: str | None, now: float) -> float | None:
    text = (retry_after or "").strip()
    if not text:
        return None
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except ValueError:
        return None
