"""The farm from outside: a client that speaks the public HTTP API and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import io
import ipaddress
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

import httpx2

from farm.client import calls
from farm.client.calls import Call
from farm.client.errors import ApiError, Corrupted, FarmClientError, JobFailed, Unreachable, WaitedTooLong
from farm.client.values import (
    Batch,
    Delivery,
    DryRun,
    Endpoint,
    EndpointSecret,
    File,
    Job,
    Key,
    Model,
    Progress,
    Rendered,
    Result,
    Worker,
)
from farm.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

    from farm.client.values import Output

    #: a path, encoded bytes, a Pillow image, or a reference (``file_…``, ``sha256:…``, a URL)
    Picture = str | os.PathLike[str] | bytes | Image

#: The server says something at least every 15 s while a job is followed; silence for longer means a dead connection.
_SILENCE_SECONDS: Final = 40.0
_LOOK_SECONDS: Final = 1.0  #: between two looks at a batch, which is one row
_PART_BYTES: Final = 256 * 2**10  #: of a bulk body, at a time
_POLL_SECONDS: Final = (0.25, 0.5, 1.0, 2.0)  #: between looks, when the stream of events cannot be had


class Farm:
    """A render farm, through its API.

    ``url`` and ``api_key`` come from ``FARM_URL`` and ``FARM_API_KEY`` when they are not given. A request that found
    nobody, or an answer of 429, 502, 503 or 504, is sent again up to ``retries`` times. Submitting always carries an
    ``Idempotency-Key``, so a repeated submit never makes two jobs.

        with Farm() as farm:
            rendered = farm.run(prompt="a red ball on a blue background")
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, retries: int = 4, timeout: float = 30.0
    ) -> None:
        found = url or os.environ.get("FARM_URL")
        if not found:
            raise BadInput.of("url", None, "is not known: give it, or set FARM_URL")
        key = api_key or os.environ.get("FARM_API_KEY")
        if not key:
            raise BadInput.of("api_key", None, "is not known: give it, or set FARM_API_KEY")
        if urlsplit(found).scheme not in ("http", "https") or not urlsplit(found).hostname:
            raise BadInput.of("url", found, f"{found!r} is no http or https address")
        if not key.isascii() or not key.isprintable():
            raise BadInput.of("api_key", None, "has characters that no key has")
        self.url = found.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}
        self._retries = retries
        # A proxy of the surroundings does not know what is on this machine's loopback.
        self._http = httpx2.Client(
            timeout=httpx2.Timeout(timeout, connect=10.0),
            trust_env=not _is_loopback(found),
            headers={"User-Agent": "farm-client"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- jobs --------------------------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: str,
        *,
        task: str | None = None,
        image: Picture | None = None,
        mask: Picture | None = None,
        depth: Picture | None = None,
        idempotency_key: str | None = None,
        **parameters: object,
    ) -> Job:
        """Submit one job. Pictures that are not references are uploaded first; parameters of None are left out.

        The task is the one that the pictures mean, unless it is given. Raises `BadInput`, `ApiError`, `Unreachable`.
        """
        pictures = {"image": image, "mask": mask, "depth": depth}
        given = {name: picture for name, picture in pictures.items() if picture is not None}
        if task is None:
            task = calls.infer_task(image="image" in given, mask="mask" in given, depth="depth" in given)
        body: dict[str, Any] = {"task": task, "prompt": prompt}
        body |= {name: value for name, value in parameters.items() if value is not None}
        for name, picture in given.items():
            body[calls.PICTURE_FIELDS[name]] = self._reference(name, picture)
        return self.submit_body(body, idempotency_key=idempotency_key)

    def submit_body(self, body: dict[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit one job by the JSON of its request, such as another job's ``parameters``."""
        return Job.of(self._json(calls.submit(body, idempotency_key)))

    def upload(self, picture: Picture, name: str = "image") -> File:
        """Store a picture for use in any number of jobs."""
        return File.of(self._json(calls.upload(*calls.read_picture(name, picture))))

    def get(self, job_id: str) -> Job:
        """The job as it is now, with fresh URLs of its outputs."""
        return Job.of(self._json(calls.get(job_id)))

    def list(self, *, limit: int | None = None, **filters: Any) -> Iterator[Job]:
        """Jobs, newest first, page after page; ``state`` may be a list. At most ``limit`` of them."""
        yield from map(Job.of, self._pages(limit, lambda size, cursor: calls.page({**filters, "limit": size}, cursor)))

    def cancel(self, job_id: str) -> Job:
        """Stop a job: at once while it waits, at the next denoising step while it runs."""
        return Job.of(self._json(calls.cancel(job_id)))

    def retry(self, job_id: str) -> Job:
        """Submit again what a failed or canceled job asked for, as a new job."""
        return Job.of(self._json(calls.retry(job_id)))

    def wait(
        self, job: Job | str, *, on_progress: Callable[[Job], None] | None = None, timeout: float | None = None
    ) -> Job:
        """The job when it is over, however it ended.

        ``on_progress`` hears every change of its state and every step reported. Raises `WaitedTooLong` after
        ``timeout`` seconds.
        """
        first = now = self.get(job) if isinstance(job, str) else job
        tell = on_progress or (lambda _: None)
        deadline = None if timeout is None else time.monotonic() + timeout
        for now in self._states(first, deadline):
            tell(now)
            if now.over:
                return now
        assert timeout is not None  # only a deadline ends the states of a job that is not over
        raise WaitedTooLong(now, timeout)

    def run(
        self,
        prompt: str,
        *,
        on_progress: Callable[[Job], None] | None = None,
        timeout: float | None = None,
        **parameters: Any,
    ) -> Rendered:
        """Submit, wait and download. Raises `JobFailed` if the job has no pictures."""
        job = self.wait(self.submit(prompt, **parameters), on_progress=on_progress, timeout=timeout)
        if not job.succeeded:
            raise JobFailed(job)
        return Rendered(job, tuple(map(self.download, job.outputs)))

    def download(self, output: Output) -> bytes:
        """An output's bytes, checked against its SHA-256. Raises `Corrupted`."""
        response = self._retried(lambda: self._http.get(output.url, follow_redirects=True), repeatable=True)
        if response.status_code in (400, 401, 403):  # the URL has expired: the job has a fresh one
            fresh = self.get(output.job_id).outputs[output.index]
            response = self._retried(lambda: self._http.get(fresh.url, follow_redirects=True), repeatable=True)
        if response.status_code != httpx2.codes.OK:
            raise FarmClientError(
                f"output {output.index} of {output.job_id} cannot be downloaded: "
                f"{urlsplit(output.url).netloc} answered {response.status_code}"
            )
        if hashlib.sha256(response.content).hexdigest() != output.sha256:
            raise Corrupted(f"output {output.index} of {output.job_id} arrived damaged: its SHA-256 differs")
        return response.content

    # -- batches -----------------------------------------------------------------------------------------------------

    def submit_batch(
        self,
        source: os.PathLike[str] | bytes | IO[bytes] | Sequence[Mapping[str, Any]],
        *,
        content_type: str = calls.JSONL,
        name: str | None = None,
        on_error: str | None = None,
        idempotency_key: str | None = None,
        **defaults: object,
    ) -> Batch:
        """Submit many jobs at once: all of them or, unless ``on_error`` is ``"skip"``, none.

        ``source`` is a file, its content, an open file (read once, so never sent again), or a list of requests.
        ``defaults`` are parameters that the jobs leave open. Raises `ApiError` whose ``errors`` name every bad line.
        """
        query = {"name": name, "on_error": on_error, **defaults}
        return Batch.of(self._json(_bulk(source, content_type, query, idempotency_key)))

    def check_batch(
        self,
        source: os.PathLike[str] | bytes | IO[bytes] | Sequence[Mapping[str, Any]],
        *,
        content_type: str = calls.JSONL,
        **defaults: object,
    ) -> DryRun:
        """What `submit_batch` would do: counts, costs, and what is wrong with which line. Nothing is stored."""
        return DryRun.of(self._json(_bulk(source, content_type, {"dry_run": True, **defaults}, None)))

    def batch(self, batch_id: str) -> Batch:
        """How far a batch is."""
        return Batch.of(self._json(calls.batch(batch_id)))

    def batches(self, *, limit: int | None = None) -> Iterator[Batch]:
        """Batches, newest first, page after page; at most ``limit`` of them."""
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            body = self._json(calls.batches(100 if left is None else min(left, 100), cursor))
            yield from map(Batch.of, body["data"])
            cursor = body.get("next")
            if left is not None:
                left -= len(body["data"])
            if not cursor:
                return

    def results(self, batch_id: str) -> Iterator[Result]:
        """What became of a batch's jobs that are over, in the order of the batch, as they arrive."""
        yield from map(Result.of, self._lines(calls.batch_lines(batch_id, "results")))

    def batch_errors(self, batch_id: str) -> Iterator[dict[str, Any]]:
        """What went wrong in a batch: refused lines (``line``, ``errors``), then failed jobs (``seq``, ``error``)."""
        yield from self._lines(calls.batch_lines(batch_id, "errors"))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Stop every job of a batch that is not over."""
        return Batch.of(self._json(calls.cancel_batch(batch_id)))

    def retry_batch(self, batch_id: str) -> Batch:
        """Submit again what failed or was canceled in a batch that is over, as a new batch."""
        return Batch.of(self._json(calls.retry_batch(batch_id)))

    def wait_batch(
        self, batch: Batch | str, *, on_progress: Callable[[Batch], None] | None = None, timeout: float | None = None
    ) -> Batch:
        """The batch when every job of it is over. ``on_progress`` hears how far it is, about once a second.

        Raises `WaitedTooLong` after ``timeout`` seconds.
        """
        now = self.batch(batch) if isinstance(batch, str) else batch
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if on_progress is not None:
                on_progress(now)
            if now.over:
                return now
            if _past(deadline):
                assert timeout is not None
                raise WaitedTooLong(now, timeout)
            time.sleep(_within(deadline, _LOOK_SECONDS))
            now = self.batch(now.id)

    # -- the farm ----------------------------------------------------------------------------------------------------

    def models(self) -> tuple[Model, ...]:
        """What there is to render with; the first that does a task is its default."""
        return tuple(map(Model.of, self._json(calls.models())["data"]))

    def workers(self) -> tuple[Worker, ...]:
        """Who renders."""
        return tuple(map(Worker.of, self._json(calls.workers())["data"]))

    def keys(self) -> tuple[Key, ...]:
        """The tenant's API keys."""
        return tuple(map(Key.of, self._json(calls.keys())["data"]))

    def make_key(self, name: str, scopes: tuple[str, ...] = ()) -> Key:
        """A new API key; its ``text`` is told this once."""
        return Key.of(self._json(calls.make_key(name, scopes)))

    def revoke_key(self, key_id: str) -> Key:
        """End a key at once."""
        return Key.of(self._json(calls.revoke_key(key_id)))

    # -- webhooks ----------------------------------------------------------------------------------------------------

    def endpoints(self, *, limit: int | None = None, one_off: bool | None = None) -> Iterator[Endpoint]:
        """Webhook endpoints, newest first. ``one_off``: only those made for the ``webhook`` of jobs, or none."""
        told = None if one_off is None else str(one_off).lower()
        yield from map(
            Endpoint.of,
            self._pages(limit, lambda size, cursor: calls.endpoints(cursor, {"one_off": told, "limit": size})),
        )

    def add_endpoint(
        self, url: str, *, events: Sequence[str] = (), description: str = "", asymmetric: bool = False
    ) -> Endpoint:
        """Have events sent to a URL: those of the given types, or the ends of all jobs. It has its ``secret``.

        ``asymmetric``: sign with a key pair too (``v1a``), which the receiver checks with one of its ``public_keys``.
        """
        body: dict[str, Any] = {"url": url, "description": description} | ({"events": [*events]} if events else {})
        body |= {"asymmetric": True} if asymmetric else {}
        return Endpoint.of(self._json(calls.add_endpoint(body)))

    def endpoint(self, endpoint_id: str) -> Endpoint:
        """The endpoint and how it fares."""
        return Endpoint.of(self._json(calls.endpoint(endpoint_id)))

    def edit_endpoint(self, endpoint_id: str, **changes: object) -> Endpoint:
        """Change its ``url``, ``description``, ``events``, ``enabled`` or ``asymmetric``."""
        return Endpoint.of(self._json(calls.edit_endpoint(endpoint_id, changes)))

    def remove_endpoint(self, endpoint_id: str) -> Endpoint:
        """Send it nothing more, and forget what was sent."""
        return Endpoint.of(self._json(calls.remove_endpoint(endpoint_id)))

    def endpoint_secret(self, endpoint_id: str) -> EndpointSecret:
        """What its webhooks are signed with."""
        return EndpointSecret.of(self._json(calls.endpoint_secret(endpoint_id)))

    def rotate_secret(self, endpoint_id: str, *, overlap_seconds: int | None = None) -> EndpointSecret:
        """Give it a new secret. The old one signs as well for ``overlap_seconds``, or a day."""
        return EndpointSecret.of(self._json(calls.rotate_secret(endpoint_id, overlap_seconds)))

    def test_endpoint(self, endpoint_id: str) -> Delivery:
        """Send it a ``farm.test`` event."""
        return Delivery.of(self._json(calls.test_endpoint(endpoint_id)))

    def deliveries(self, *, limit: int | None = None, **filters: Any) -> Iterator[Delivery]:
        """Deliveries, newest event first: of an ``endpoint_id``, ``state``, ``job_id``, ``type`` or time."""
        yield from map(
            Delivery.of, self._pages(limit, lambda size, cursor: calls.deliveries({**filters, "limit": size}, cursor))
        )

    def delivery(self, delivery_id: str) -> Delivery:
        """The delivery with everything that was tried for it."""
        return Delivery.of(self._json(calls.delivery(delivery_id)))

    def resend(self, delivery_id: str) -> Delivery:
        """Send a delivery now, delivered before or not, under the same id."""
        return Delivery.of(self._json(calls.resend(delivery_id)))

    def resend_dead(self, **filters: Any) -> int:
        """Send dead deliveries again: all, or of an ``endpoint_id``, ``job_id``, ``type`` or time. Returns how many."""
        return int(self._json(calls.resend_dead(filters))["count"])

    # -- one request -------------------------------------------------------------------------------------------------

    def _pages(self, limit: int | None, page: Callable[[int, str | None], Call]) -> Iterator[dict[str, Any]]:
        """What a list has, page after page; ``page`` gives the call for one of a size and a cursor."""
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            body = self._json(page(100 if left is None else min(left, 100), cursor))
            yield from body["data"]
            cursor = body.get("next")
            if left is not None:
                left -= len(body["data"])
            if not cursor:
                return

    def _reference(self, name: str, picture: Picture) -> str:
        return calls.reference(picture) or self.upload(picture, name).id

    def _json(self, call: Call) -> Any:
        response = self._retried(lambda: self._http.send(self._request(call)), repeatable=call.repeatable)
        if not response.is_success:
            raise ApiError.of(response.status_code, response.content)
        try:
            return response.json()
        except ValueError as error:
            raise Unreachable(f"{self.url} answers, but it is no farm: point FARM_URL at a farm's API") from error

    def _request(self, call: Call, timeout: httpx2.Timeout | None = None) -> httpx2.Request:
        if timeout is None and call.patience is not None:
            timeout = httpx2.Timeout(call.patience, connect=10.0)
        more: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        return self._http.build_request(
            call.method,
            self.url + call.path,
            json=call.json,
            params=call.params or None,
            headers={**self._headers, **call.headers},
            files=None if call.file is None else {"file": call.file},
            content=None if call.content is None else call.content(),
            **more,
        )

    def _retried(self, send: Callable[[], httpx2.Response], *, repeatable: bool) -> httpx2.Response:
        """Send until there is an answer worth returning.

        A call that is not repeatable is sent again only when it did certainly nothing: the connection was refused, or
        the farm refused to take it up.
        """
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                response = send()
            except (httpx2.TransportError, httpx2.InvalidURL) as error:
                nothing_done = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                hopeless = isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL)
                if last or hopeless or not (repeatable or nothing_done):
                    raise Unreachable(f"no farm answers at {self.url}: {_reason(error)}") from error
                time.sleep(calls.delay(attempt))
                continue
            refused = response.status_code in (429, 503)
            if last or response.status_code not in calls.RETRIED or not (repeatable or refused):
                return response
            time.sleep(calls.delay(attempt, response.headers.get("Retry-After"), time.time()))
        raise AssertionError("the last attempt returns or raises")

    def _lines(self, call: Call) -> Iterator[dict[str, Any]]:
        """The JSON lines of a streamed answer. Raises `Unreachable` if it breaks before its end."""
        response = self._retried(lambda: self._http.send(self._request(call), stream=True), repeatable=True)
        try:
            if not response.is_success:
                raise ApiError.of(response.status_code, response.read())
            for line in response.iter_lines():
                if line:
                    yield json.loads(line)
        except httpx2.TransportError as error:
            raise Unreachable(f"the answer of {self.url} broke off: {_reason(error)}") from error
        finally:
            response.close()

    # -- following a job ---------------------------------------------------------------------------------------------

    def _states(self, job: Job, deadline: float | None) -> Iterator[Job]:
        """The job at each of its changes, until it is over or the deadline has come; no silent server holds it up."""
        yield job
        last_event_id: str | None = None
        failures = 0
        while not job.over and not _past(deadline):
            heard = False
            try:
                for event in self._events(job, last_event_id, deadline):
                    heard, failures = True, 0
                    last_event_id = event.id or last_event_id
                    if event.event == "job":
                        job = Job.of(_object(event))
                    elif event.event == "progress":
                        progress = _object(event)
                        job = replace(job, progress=Progress(int(progress["step"]), int(progress["steps"])))
                    else:
                        continue
                    yield job
                    if job.over or _past(deadline):
                        return
            except (httpx2.TransportError, ApiError, KeyError, TypeError, ValueError):
                pass  # looked at below, with patience and a plain request
            failures = 0 if heard else failures + 1
            time.sleep(_within(deadline, _POLL_SECONDS[min(failures, len(_POLL_SECONDS) - 1)]))
            if _past(deadline):
                return
            # A plain request has retries of its own, and says what is wrong when the farm is gone for good.
            seen = self.get(job.id)
            if seen != job:
                job = seen
                yield job

    def _events(self, job: Job, last_event_id: str | None, deadline: float | None) -> Iterator[httpx2.ServerSentEvent]:
        read = _within(deadline, _SILENCE_SECONDS)
        request = self._request(calls.events(job.id, last_event_id), httpx2.Timeout(10.0, read=max(read, 0.05)))
        with self._streamed(request) as response:
            if response.status_code != httpx2.codes.OK:
                raise ApiError.of(response.status_code, response.read())
            yield from httpx2.EventSource(response)

    @contextlib.contextmanager
    def _streamed(self, request: httpx2.Request) -> Generator[httpx2.Response]:
        response = self._http.send(request, stream=True)
        try:
            yield response
        finally:
            response.close()


def _bulk(
    source: os.PathLike[str] | bytes | IO[bytes] | Sequence[Mapping[str, Any]],
    content_type: str,
    query: Mapping[str, Any],
    idempotency_key: str | None,
) -> Call:
    repeatable = True
    content: Callable[[], Iterable[bytes]]
    if isinstance(source, bytes):
        content = partial(_parts, io.BytesIO, source)
    elif isinstance(source, os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise BadInput.of("file", str(path), f"there is no file {path}")
        content = partial(_parts, path.open, "rb")
    elif isinstance(source, Sequence):
        requests, content_type = source, calls.JSONL
        content = partial(map, lambda one: json.dumps(dict(one)).encode() + b"\n", requests)
    else:
        opened, repeatable = source, False
        content = partial(_parts, contextlib.nullcontext, opened)
    return calls.submit_batch(content, content_type, query, idempotency_key, repeatable=repeatable)


def _parts(opening: Callable[..., Any], *arguments: Any) -> Iterator[bytes]:
    """A file's content, piece by piece."""
    with opening(*arguments) as file:
        while part := file.read(_PART_BYTES):
            yield part


def _object(event: httpx2.ServerSentEvent) -> dict[str, Any]:
    body = event.json()
    if not isinstance(body, dict):
        raise ValueError("an event of a job is a JSON object")  # noqa: TRY004 - as any other event that is malformed
    return body


def _past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _within(deadline: float | None, seconds: float) -> float:
    return seconds if deadline is None else max(0.0, min(seconds, deadline - time.monotonic()))


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "it did not answer in time"
    return str(error) or type(error).__name__
