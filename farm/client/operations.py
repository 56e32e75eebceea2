"""Conversations of more than one request: submitting with images, waiting, downloading, following."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar, Unpack
from urllib.parse import urlsplit

import httpx2

from farm.api_types import FileInput, JobParameters, Task
from farm.client import requests
from farm.client.errors import (
    ApiError,
    Corrupted,
    FarmClientError,
    JobFailed,
    ServerProblem,
    Unreachable,
    WaitedTooLong,
)
from farm.client.models import Artifact, Batch, Event, Job, Model, Output, Progress, Rendered, Result
from farm.client.protocol import Call, Emit, Fetched, Flow, Open, Sleep, Stream, Streamed, StreamFormat

T = TypeVar("T")

#: The server says something at least every 15 s while a job is followed; silence for longer means a dead connection.
_SILENCE_SECONDS: Final = 40.0
_LOOK_SECONDS: Final = 1.0  #: between two looks at a batch, which is one row
_AWAY_SECONDS: Final = 2.0  #: between two tries to reach a farm that is away
_LOOK_SHARE: Final = 5.0  #: a look at a batch's results is followed by a rest of so many times what it took
_POLL_SECONDS: Final = (0.25, 0.5, 1.0, 2.0)  #: between looks, when the stream of events cannot be had
#: How long a farm that was reached before may be away, while somebody waits for it: it restarts, or is updated.
_OUTAGE_SECONDS: Final = 300.0
#: What a stream of events may end with: then a plain request, with its own timeout, reads the state.
_BROKEN: Final = (httpx2.TransportError, Unreachable, ApiError, KeyError, TypeError, ValueError)


def submit(
    prompt: str | None = None,
    *,
    task: Task | None = None,
    image: FileInput | Sequence[FileInput] | None = None,
    mask: FileInput | None = None,
    depth: FileInput | None = None,
    idempotency_key: str | None = None,
    **parameters: Unpack[JobParameters],
) -> Flow[Job]:
    """Submit one job.

    Args:
        prompt: what to render; some tasks do without.
        task: what to do; the one that the given files mean, if absent.
        image: the image to begin with, or several. Files that are not references are uploaded first.
        mask: ``mask_image``; its white part is replaced.
        depth: ``depth_map``; brighter is nearer.
        idempotency_key: the same key gives the same job, however often it is sent.
        **parameters: the job's parameters and other input files; those of None are left out.

    Raises:
        BadInput: the files mean no task, or one cannot be read.
        ApiError: the farm refused the job; ``errors`` names the fields.
        Unreachable: no farm answers.
    """
    values: dict[str, Any] = {"prompt": prompt, **parameters}
    files: dict[str, Any] = {name: values.pop(name) for name in requests.INPUT_ROLES if name in values}
    short = {"image": image, "mask_image": mask, "depth_map": depth}
    files |= {role: value for role, value in short.items() if value is not None}
    files = {role: value for role, value in files.items() if value is not None}
    own: dict[str, Any] = values.pop("inputs", None) or {}
    body: dict[str, Any] = {"task": task or requests.infer_task(files)} | requests.json_values(values)
    for role, value in files.items():
        body[role] = yield from _references(role, value)
    if own:
        body["inputs"] = {}
        for name, value in own.items():
            body["inputs"][name] = yield from _references(name, value)
    job: Job = yield requests.submit_body(body, idempotency_key=idempotency_key)
    return job


def _references(role: str, files: object) -> Flow[str | list[str]]:
    """What a request calls the files of a role, which are uploaded first unless they are references."""
    if isinstance(files, list | tuple):
        found: tuple[str, ...] = ()
        for file in files:
            found += (requests.reference(file) or (yield requests.upload(file, role)).id,)
        return list(found)
    reference: str = requests.reference(files) or (yield requests.upload(files, role)).id
    return reference


def wait(
    job: Job | str, *, on_progress: Callable[[Job], None] | None = None, timeout: float | None = None
) -> Flow[Job]:
    """The job when it has finished, in whatever terminal state.

    ``on_progress`` is called at every change of its state and every step reported.
    Raises `WaitedTooLong` after ``timeout`` seconds.
    """
    now: Job = (yield requests.get(job)) if isinstance(job, str) else job
    tell = on_progress or (lambda _: None)
    deadline = None if timeout is None else time.monotonic() + timeout
    last_event_id: str | None = None
    failures = 0
    tell(now)
    while not now.over and not _past(deadline):
        heard = False
        try:
            silence = max(_within(deadline, _SILENCE_SECONDS), 0.05)
            yield Open(requests.events(now.id, last_event_id), StreamFormat.EVENTS, silence)
            while (event := (yield Stream.NEXT)) is not None:
                heard, failures = True, 0
                last_event_id = event.id or last_event_id
                if event.event == "job":
                    now = Job.of(_object(event))
                elif event.event == "progress":
                    progress = _object(event)
                    now = replace(now, progress=Progress(int(progress["step"]), int(progress["steps"])))
                else:
                    continue
                tell(now)
                if now.over or _past(deadline):
                    break
        except _BROKEN:
            pass  # read below by a plain request with a longer timeout
        yield Stream.CLOSE
        if now.over or _past(deadline):
            break
        failures = 0 if heard else failures + 1
        yield Sleep(_within(deadline, _POLL_SECONDS[min(failures, len(_POLL_SECONDS) - 1)]))
        if _past(deadline):
            break
        # A plain request has retries of its own, and says what is wrong when the farm is gone for good.
        seen: Job = yield from _patiently(requests.get(now.id), deadline)
        if seen != now:
            now = seen
            tell(now)
    if now.over:
        return now
    assert timeout is not None  # only a deadline ends the wait for an unfinished job
    raise WaitedTooLong(now, timeout)


def run(
    prompt: str | None = None,
    *,
    task: Task | None = None,
    image: FileInput | Sequence[FileInput] | None = None,
    mask: FileInput | None = None,
    depth: FileInput | None = None,
    idempotency_key: str | None = None,
    on_progress: Callable[[Job], None] | None = None,
    timeout: float | None = None,
    **parameters: Unpack[JobParameters],
) -> Flow[Rendered]:
    """Submit a job as `submit` does, wait until it has ended, and download what it rendered.

    Args:
        prompt: what to render.
        task: as in `submit`, as the next four and the parameters.
        image: see `submit`.
        mask: see `submit`.
        depth: see `submit`.
        idempotency_key: see `submit`.
        on_progress: is called with the job at each change of its state and at each reported step.
        timeout: seconds to wait at most; the job goes on after them.
        **parameters: the job's parameters; those of None are left out.

    Raises:
        JobFailed: the job failed or was canceled.
        WaitedTooLong: ``timeout`` seconds have passed.
        Corrupted: an output was damaged on its way.
    """
    submitted = yield from submit(
        prompt, task=task, image=image, mask=mask, depth=depth, idempotency_key=idempotency_key, **parameters
    )
    job = yield from wait(submitted, on_progress=on_progress, timeout=timeout)
    if not job.succeeded:
        raise JobFailed(job)
    artifacts: tuple[Artifact, ...] = ()
    for output in job.outputs:
        artifacts += (Artifact(output, (yield from download(output))),)
    return Rendered(job, artifacts)


def download(output: Output) -> Flow[bytes]:
    """An output's bytes, checked against its SHA-256. Raises `Corrupted`."""
    found: Fetched = yield requests.fetch(output.url)
    if found.status in (400, 401, 403):  # the URL has expired: the job has a fresh one
        job: Job = yield requests.get(output.job_id)
        fresh = next((one for one in job.outputs if one.index == output.index), None)
        if fresh is None:
            raise FarmClientError(f"output {output.index} of {output.job_id} was deleted")
        found = yield requests.fetch(fresh.url)
    if found.status != httpx2.codes.OK:
        raise FarmClientError(
            f"output {output.index} of {output.job_id} cannot be downloaded: "
            f"{urlsplit(output.url).netloc} answered {found.status}"
        )
    if hashlib.sha256(found.content).hexdigest() != output.sha256:
        raise Corrupted(f"output {output.index} of {output.job_id} was damaged in transit: its SHA-256 differs")
    return found.content


def wait_model(
    model: Model | str, *, on_progress: Callable[[Model], None] | None = None, timeout: float | None = None
) -> Flow[Model]:
    """An added model when its check has ended: its ``state`` is ``ready`` or ``failed``, and ``report`` says why.

    ``on_progress`` gets it about once a second. Raises `WaitedTooLong` after ``timeout`` seconds.
    """
    name = model if isinstance(model, str) else model.id
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        now: Model = yield from _patiently(requests.model(name), deadline)
        if on_progress is not None:
            on_progress(now)
        if now.state != "checking":
            return now
        if _past(deadline):
            assert timeout is not None
            raise WaitedTooLong(now, timeout)
        yield Sleep(_within(deadline, _LOOK_SECONDS))


def wait_batch(
    batch: Batch | str, *, on_progress: Callable[[Batch], None] | None = None, timeout: float | None = None
) -> Flow[Batch]:
    """The batch when all its jobs have finished. ``on_progress`` gets its progress about once a second.

    Raises `WaitedTooLong` after ``timeout`` seconds.
    """
    now: Batch = (yield requests.batch(batch)) if isinstance(batch, str) else batch
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        if on_progress is not None:
            on_progress(now)
        if now.over:
            return now
        if _past(deadline):
            assert timeout is not None
            raise WaitedTooLong(now, timeout)
        yield Sleep(_within(deadline, _LOOK_SECONDS))
        now = yield from _patiently(requests.batch(now.id), deadline)


def _patiently(call: Call[T], deadline: float | None = None) -> Flow[T]:
    """What comes of a repeatable call, which is sent again while a farm that was reached before is away.

    Raises what the call raises when the farm is away for longer than `_OUTAGE_SECONDS`, or beyond the deadline.
    """
    waited = 0.0
    while True:
        try:
            found: T = yield call
        except (Unreachable, ServerProblem):
            if waited >= _OUTAGE_SECONDS or _past(deadline):
                raise
        else:
            return found
        yield Sleep(_within(deadline, _AWAY_SECONDS))
        waited += _AWAY_SECONDS


def events(name: str, *, last_event_id: str | None = None) -> Streamed[Event]:
    """The events of a job or batch until it has finished; a broken connection is resumed where it was.

    Raises `ApiError` or `Unreachable` when the farm does not answer any more.
    """

    def steps() -> Flow[None]:
        after, failures = last_event_id, 0
        while True:
            try:
                yield Open(requests.events(name, after), StreamFormat.EVENTS, _SILENCE_SECONDS)
                while (event := (yield Stream.NEXT)) is not None:
                    failures = 0
                    after = event.id or after
                    yield Emit(Event(event.event, _object(event), event.id or None))
            except _BROKEN:
                failures += 1
            yield Stream.CLOSE
            # says that it has finished, or what is wrong
            call: Call[Any] = requests.batch(name) if requests.is_batch(name) else requests.get(name)
            now: Job | Batch = yield from _patiently(call)
            if now.over and not failures:
                return
            yield Sleep(_POLL_SECONDS[min(failures, len(_POLL_SECONDS) - 1)])

    return Streamed(steps)


def completed(batch: Batch | str, *, timeout: float | None = None) -> Streamed[Result]:
    """A batch's results as its jobs end, each once. Raises `WaitedTooLong` after ``timeout`` seconds.

    The results are looked through again after each rest, which is longer where there are many.
    """
    name = batch if isinstance(batch, str) else batch.id

    def steps() -> Flow[None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        yielded: set[int] = set()
        while True:
            now: Batch = yield from _patiently(requests.batch(name), deadline)
            begun = time.monotonic()
            whole = True
            if now.ended > len(yielded):
                try:
                    yield Open(requests.result_lines(name), StreamFormat.LINES)
                    while (line := (yield Stream.NEXT)) is not None:
                        result = Result.of(line)
                        if result.seq not in yielded:
                            yielded.add(result.seq)
                            yield Emit(result)
                except (Unreachable, ServerProblem):
                    whole = False  # the next look goes on, if the farm comes back
                yield Stream.CLOSE
            if now.over and whole:
                return
            if _past(deadline):
                assert timeout is not None
                raise WaitedTooLong(now, timeout)
            rest = max(_LOOK_SECONDS, _LOOK_SHARE * (time.monotonic() - begun))
            yield Sleep(_within(deadline, rest))

    return Streamed(steps)


def _object(event: httpx2.ServerSentEvent) -> dict[str, Any]:
    body = event.json()
    if not isinstance(body, dict):
        raise ValueError("an event of a job is a JSON object")  # noqa: TRY004 - as any other event that is malformed
    return body


def _past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _within(deadline: float | None, seconds: float) -> float:
    return seconds if deadline is None else max(0.0, min(seconds, deadline - time.monotonic()))
