"""The HTTP requests of the client, and when they are retried: without I/O, so that both clients use them.

The file is long because it has one function per route of the API.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias, TypeVar, Unpack

from farm.api_types import (
    TASK_INPUTS,
    BatchChanges,
    BatchDefaults,
    DeliveryFilters,
    EndpointChanges,
    EventType,
    JobFilters,
    LabelChanges,
    ModelChanges,
    ModelFields,
    OutputFilters,
    ResendFilters,
    Scope,
    Task,
    TenantChanges,
    TenantLimits,
)
from farm.client.models import (
    Batch,
    CancelReport,
    Deletion,
    Delivery,
    DryRun,
    Endpoint,
    EndpointSecret,
    File,
    FoundOutput,
    Job,
    JoinToken,
    Key,
    Model,
    NumericsClass,
    Output,
    OutputCheck,
    OutputRepair,
    Result,
    RetryReport,
    Worker,
)
from farm.client.protocol import IDEMPOTENCY_KEY, Call, Emit, Fetched, Flow, Open, Stream, Streamed, StreamFormat
from farm.errors import BadInput

#: The names of all tasks' input files.
INPUT_ROLES: Final = frozenset[str]().union(*TASK_INPUTS.values())

JSON: Final = "application/json"
JSONL: Final = "application/jsonl"
CSV: Final = "text/csv"

RETRIED: Final = frozenset({429, 502, 503, 504})  #: answers that say: try again
BULK_SECONDS: Final = 600.0  #: the most that the farm takes to store or stop a whole batch
LONGEST_DELAY: Final = 60.0  #: seconds; the most that a Retry-After is honoured for

#: The values of each parameter; or several of these, which are multiplied out, with the lists of each zipped.
Sweep: TypeAlias = Mapping[str, Iterable[Any]] | Sequence[Mapping[str, Iterable[Any]]]
#: What a bulk body may come from.
Source: TypeAlias = os.PathLike[str] | bytes | IO[bytes] | Sequence[Mapping[str, Any]]

#: What names an output: itself, or ``JOB/INDEX``.
OutputReference: TypeAlias = "Output | FoundOutput | str"

_PART_BYTES: Final = 256 * 2**10  #: of a bulk body, at a time
_REFERENCE: Final = re.compile(
    r"file_[0-9a-f]{32}|sha256:[0-9a-f]{64}|job_[0-9a-f]{32}(/[0-9]{1,4})?|https?://.+|data:.+", re.DOTALL
)


T = TypeVar("T")


def json_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as a request's JSON: without those of None, and times in words."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in given.items()
        if value is not None
    }


def whole(body: Any) -> Any:
    """The answer's JSON as it is."""
    return body


# -- jobs ------------------------------------------------------------------------------------------------------------


def submit_body(body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Call[Job]:
    """Submit one job by the JSON of its request, such as another job's ``parameters``.

    Its key makes the call repeatable: a second one with the same key returns the first one's job.
    """
    return Call("POST", "/v1/jobs", Job.of, json=dict(body), headers=_named(idempotency_key))


def _named(key: str | None) -> dict[str, str]:
    """The caller's own name for a request; a call without one gets one."""
    return {} if not key else {IDEMPOTENCY_KEY: key}


def upload(image: object, name: str = "image") -> Call[File]:
    """Store an image for use in any number of jobs; the same bytes again give the same file."""
    return Call("POST", "/v1/files", File.of, file=read_image(name, image))


def get(job_id: str) -> Call[Job]:
    """The job as it is now, with fresh URLs of its outputs."""
    return Call("GET", f"/v1/jobs/{_segment(job_id, 'job')}", Job.of)


def jobs(*, limit: int | None = None, **filters: Unpack[JobFilters]) -> Streamed[Job]:
    """Jobs, newest first, page after page; ``state`` may be a list. At most ``limit`` of them."""
    return _pages("/v1/jobs", filters, Job.of, limit)


def cancel(job_id: str) -> Call[Job]:
    """Stop a job: at once while it waits, at the next denoising step while it runs."""
    return Call("POST", f"/v1/jobs/{_segment(job_id, 'job')}/cancel", Job.of)


def retry(job_id: str, *, with_dependents: bool = False) -> Call[Job]:
    """Submit again what a failed or canceled job asked for, as a new job; one that was retried gives its retry.

    ``with_dependents``: also the jobs that failed for want of its outputs.
    """
    query = "?with_dependents=true" if with_dependents else ""
    return Call("POST", f"/v1/jobs/{_segment(job_id, 'job')}/retry{query}", Job.of)


def cancel_jobs(
    ids: Sequence[str] | None = None, *, dry_run: bool = False, everything: bool = False, **filters: Unpack[JobFilters]
) -> Call[CancelReport]:
    """Stop the jobs that are named, or all that match a filter; ``dry_run`` only counts.

    Filters are ``state`` (may be a list), ``task``, ``model``, ``custom_id``, ``batch_id``, ``error_code``,
    ``created_after`` and ``created_before``; ``everything=True`` is all of them.
    """
    body = _selection(ids, filters, dry_run=dry_run, everything=everything)
    return Call("POST", "/v1/jobs/cancel", CancelReport.of, json=body, timeout=BULK_SECONDS)


def retry_jobs(
    ids: Sequence[str] | None = None, *, dry_run: bool = False, everything: bool = False, **filters: Unpack[JobFilters]
) -> Call[RetryReport]:
    """Submit again what failed or was canceled among the jobs that are meant, as in `cancel_jobs`.

    What was retried before is passed over, so the call may be repeated.
    """
    body = _selection(ids, filters, dry_run=dry_run, everything=everything)
    return Call("POST", "/v1/jobs/retry", RetryReport.of, json=body, timeout=BULK_SECONDS)


def _selection(ids: Sequence[str] | None, filters: JobFilters, *, dry_run: bool, everything: bool) -> dict[str, Any]:
    given = {name: value for name, value in json_values(filters).items() if value not in ([], ())}
    if (ids is None) == (not given and not everything):
        raise BadInput.of("ids", ids, "give job ids, a filter, or everything=True")
    if isinstance(given.get("state"), str):
        given["state"] = [given["state"]]
    chosen: dict[str, Any] = {"filter": given} if ids is None else {"ids": list(ids)}
    return chosen | {"dry_run": dry_run}


def events(name: str, last_event_id: str | None) -> Call[Any]:
    """Follow a job, or a batch, from after that event."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    kind = "batches" if is_batch(name) else "jobs"
    return Call("GET", f"/v1/{kind}/{_segment(name, 'job')}/events", whole, headers=headers)


def is_batch(name: str) -> bool:
    """Whether an id is a batch's."""
    return name.startswith("bat_")


def fetch(url: str) -> Call[Fetched]:
    """Get what a presigned URL names."""
    return Call("GET", url, whole, foreign=True)


# -- batches ---------------------------------------------------------------------------------------------------------


def submit_batch(
    source: Source,
    *,
    content_type: str | None = None,
    name: str | None = None,
    on_error: Literal["stop", "skip"] | None = None,
    idempotency_key: str | None = None,
    **defaults: Unpack[BatchDefaults],
) -> Call[Batch]:
    """Submit many jobs at once: all of them or, unless ``on_error`` is ``"skip"``, none.

    Args:
        source: a file, its content, an open file (read once, so never sent again), or a list of requests.
        content_type: ``application/jsonl`` or ``text/csv``; CSV for a file that ends in ``.csv``, else JSON lines.
        name: your own name for the batch.
        on_error: ``stop`` (the default) refuses the whole if a line is wrong, ``skip`` takes the good lines.
        idempotency_key: the same key and body give the same batch, however often they are sent.
        **defaults: parameters that the jobs leave open; ``webhook`` receives the batch's progress events.

    Raises:
        ApiError: the farm refused it; ``errors`` name the first bad lines.
    """
    query = {"name": name, "on_error": on_error, **defaults}
    return _bulk(source, content_type, query, idempotency_key, Batch.of)


def check_batch(source: Source, *, content_type: str | None = None, **defaults: Unpack[BatchDefaults]) -> Call[DryRun]:
    """What `submit_batch` would do: counts, costs, and what is wrong with which line. Nothing is queued."""
    return _bulk(source, content_type, {"dry_run": True, **defaults}, None, DryRun.of)


def sweep(
    values: Sweep,
    *,
    repeats: int = 1,
    seeds: Literal["consecutive", "random"] | None = None,
    name: str | None = None,
    on_error: Literal["stop", "skip"] | None = None,
    idempotency_key: str | None = None,
    **defaults: Unpack[BatchDefaults],
) -> Call[Batch]:
    """Submit one job for each combination of values, as one batch.

    Args:
        values: the values of each parameter: ``{"guidance_scale": [1, 4], "seed": range(8)}`` are sixteen jobs. A list
            of such mappings is multiplied out, and the lists inside of each mapping are zipped.
        repeats: jobs per combination.
        seeds: ``consecutive`` (the default): the repeats of each combination have the same seeds; ``random``: each job
            its own.
        name: your own name for the batch.
        on_error: ``stop`` (the default) refuses the whole if a job is wrong, ``skip`` takes the good ones.
        idempotency_key: the same key and body give the same batch.
        **defaults: parameters that all jobs have; ``webhook`` receives the batch's progress events.

    Raises:
        ApiError: the farm refused it; ``errors`` name the first bad jobs.
    """
    query = {"name": name, "on_error": on_error, **defaults}
    return _sweep(values, repeats, seeds, query, idempotency_key, Batch.of)


def check_sweep(
    values: Sweep,
    *,
    repeats: int = 1,
    seeds: Literal["consecutive", "random"] | None = None,
    **defaults: Unpack[BatchDefaults],
) -> Call[DryRun]:
    """What `sweep` would do: counts, costs, and what is wrong with which job. Nothing is queued."""
    return _sweep(values, repeats, seeds, {"dry_run": True, **defaults}, None, DryRun.of)


def _sweep(
    values: Sweep,
    repeats: int,
    seeds: str | None,
    query: Mapping[str, Any],
    idempotency_key: str | None,
    read: Callable[[Any], T],
) -> Call[T]:
    groups = [{name: each} for name, each in values.items()] if isinstance(values, Mapping) else values
    written = [
        {name: [reference(one) or one if name in INPUT_ROLES else one for one in each] for name, each in group.items()}
        for group in groups
    ]
    body = json_values({"sweep": written, "repeats": repeats, "seeds": seeds})
    return _bulk(json.dumps(body).encode(), JSON, query, idempotency_key, read)


def batch(batch_id: str) -> Call[Batch]:
    """How far a batch is."""
    return Call("GET", _batch(batch_id), Batch.of)


def batches(*, limit: int | None = None) -> Streamed[Batch]:
    """Batches, newest first, page after page; at most ``limit`` of them."""
    return _pages("/v1/batches", {}, Batch.of, limit)


def results(batch_id: str) -> Streamed[Result]:
    """The results of a batch's finished jobs, in the order of the batch, as they arrive."""
    return _lines(result_lines(batch_id), Result.of)


def result_lines(batch_id: str) -> Call[Any]:
    """The same, as it is sent."""
    return Call("GET", f"{_batch(batch_id)}/results", whole, timeout=BULK_SECONDS)


def batch_errors(batch_id: str) -> Streamed[dict[str, Any]]:
    """What went wrong in a batch: refused lines (``line``, ``errors``), then failed jobs (``seq``, ``error``)."""
    return _lines(Call("GET", f"{_batch(batch_id)}/errors", whole, timeout=BULK_SECONDS), dict)


def cancel_batch(batch_id: str) -> Call[Batch]:
    """Stop every unfinished job of a batch."""
    return Call("POST", f"{_batch(batch_id)}/cancel", Batch.of, timeout=BULK_SECONDS)


def retry_batch(batch_id: str) -> Call[Batch]:
    """Submit the failed and canceled jobs of a finished batch again; one that was retried gives its retry."""
    return Call("POST", f"{_batch(batch_id)}/retry", Batch.of, timeout=BULK_SECONDS)


def pause_batch(batch_id: str) -> Call[Batch]:
    """Let a batch wait; what runs goes on to its end."""
    return Call("POST", f"{_batch(batch_id)}/pause", Batch.of, timeout=BULK_SECONDS)


def resume_batch(batch_id: str) -> Call[Batch]:
    """Let a paused batch go on, from its old place in the queue."""
    return Call("POST", f"{_batch(batch_id)}/resume", Batch.of, timeout=BULK_SECONDS)


def edit_batch(batch_id: str, **changes: Unpack[BatchChanges]) -> Call[Batch]:
    """Change a batch's ``name``, ``metadata`` or ``priority``."""
    return Call("PATCH", _batch(batch_id), Batch.of, json=dict(changes), timeout=BULK_SECONDS)


def delete_batch(batch_id: str, *, dry_run: bool = False) -> Call[Deletion]:
    """Delete a finished batch with its jobs and images; ``dry_run``: only report what would be deleted."""
    params = _params({"dry_run": dry_run})
    return Call("DELETE", _batch(batch_id), Deletion.of, repeatable=dry_run, params=params, timeout=BULK_SECONDS)


# -- the farm --------------------------------------------------------------------------------------------------------


def models() -> Call[tuple[Model, ...]]:
    """What there is to render with; the first that does a task is its default."""
    return Call("GET", "/v1/models", lambda body: tuple(map(Model.of, body["data"])))


def model(model_id: str) -> Call[Model]:
    """A model with its ``schemas``: by task, the JSON Schema of what it takes."""
    return Call("GET", f"/v1/models/{_model(model_id)}", Model.of)


def unready_models() -> Call[tuple[Model, ...]]:
    """The added models that no job may name: those that are checked now, or failed."""
    return Call("GET", "/v1/models", lambda body: tuple(map(Model.of, body["data"])), params=(("unready", "true"),))


def add_model(model_id: str, source: str, **fields: Unpack[ModelFields]) -> Call[Model]:
    """Add a model while the farm runs; `wait_model` waits until a worker has checked it. Needs the scope ``admin``.

    ``source`` is a folder that every worker sees, or a Hub repository; `push_model` sends a folder of this machine.
    """
    body = {"id": model_id, "source": source} | json_values(fields)
    return Call("POST", "/v1/models", Model.of, json=body, timeout=BULK_SECONDS)


def upload_model(manifest: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """What the farm's bucket lacks of a model's files, and the URLs to write it; `push_model` does it all."""
    return Call("POST", "/v1/model-uploads", whole, json=dict(manifest), timeout=BULK_SECONDS)


def change_model(model_id: str, **changes: Unpack[ModelChanges]) -> Call[Model]:
    """Change a model that was added; jobs keep what they were accepted with. Needs the scope ``admin``."""
    return Call("PATCH", f"/v1/models/{_model(model_id)}", Model.of, json=dict(changes))


def remove_model(model_id: str) -> Call[Model]:
    """Let no new job name a model that was added; accepted ones still end with it. Needs the scope ``admin``."""
    return Call("DELETE", f"/v1/models/{_model(model_id)}", Model.of, repeatable=False)


def health() -> Call[dict[str, str]]:
    """The API's process: its ``status`` and its ``version``. Needs no key."""
    return Call("GET", "/healthz", dict)


def readiness() -> Call[dict[str, str]]:
    """Whether ``database``, ``redis`` and ``storage`` are ``ok``, and the ``status`` of them all. Needs no key."""
    return Call("GET", "/readyz", dict, answers=frozenset({503}))


def workers() -> Call[tuple[Worker, ...]]:
    """Who renders."""
    return Call("GET", "/v1/workers", lambda body: tuple(map(Worker.of, body["data"])))


def numerics() -> Call[tuple[NumericsClass, ...]]:
    """Every numerics class that a worker ever had, with its facts and the workers that have it now."""
    return Call("GET", "/v1/numerics", lambda body: tuple(map(NumericsClass.of, body["data"])))


def audit(*, key: str | None = None, q: str | None = None, limit: int | None = None) -> Streamed[dict[str, Any]]:
    """Changes by the API and the dashboard, newest first: ``at``, ``key_name``, ``action``, ``target``.

    Args:
        key: only of this key: its id or its name.
        q: only where action or target contain this.
        limit: the most that are read.
    """
    return _pages("/v1/audit", {"key": key, "q": q}, dict, limit)


def outputs(*, limit: int | None = None, **filters: Unpack[OutputFilters]) -> Streamed[FoundOutput]:
    """Outputs, newest job first, page after page; ``q`` searches the prompts. At most ``limit`` of them."""
    return _pages("/v1/outputs", filters, FoundOutput.of, limit)


def output_labels() -> Call[tuple[dict[str, Any], ...]]:
    """Tags and collections: ``kind``, ``name`` and how many ``outputs`` have each."""
    return Call("GET", "/v1/outputs/labels", lambda body: tuple(body["data"]))


def label_outputs(outputs: Iterable[OutputReference], **changes: Unpack[LabelChanges]) -> Call[tuple[FoundOutput, ...]]:
    """Change stars, tags and collections of outputs: all of them, or none. Returns them as they are now."""
    body = {"outputs": [_place(one) for one in outputs]} | json_values(changes)
    return Call("POST", "/v1/outputs/labels", lambda found: tuple(map(FoundOutput.of, found["data"])), json=body)


def delete_outputs(outputs: Iterable[OutputReference]) -> Call[int]:
    """Delete outputs for good: all of them, or none. Returns how many. Their jobs stay."""
    body = {"outputs": [_place(one) for one in outputs]}
    return Call("POST", "/v1/outputs/delete", lambda found: int(found["deleted"]), repeatable=False, json=body)


def delete_job(job_id: str) -> Call[int]:
    """Delete a job that has ended, with its outputs and its history; returns how many outputs it had.

    A job of a batch goes with its batch.
    """
    return Call("DELETE", f"/v1/jobs/{_segment(job_id, 'job')}", lambda found: int(found["deleted"]), repeatable=False)


def _place(output: OutputReference) -> dict[str, Any]:
    if isinstance(output, Output | FoundOutput):
        return {"job_id": output.job_id, "index": output.index}
    job_id, _, index = output.partition("/")
    if not index.isdecimal() or not index.isascii():
        raise BadInput.of("outputs", output, f"{output!r} is no output: write JOB/INDEX, such as job_…/0")
    return {"job_id": job_id, "index": int(index)}


def check_outputs(
    *,
    since: datetime | None = None,
    batch_id: str | None = None,
    deep: bool = False,
    cursor: str | None = None,
) -> Call[OutputCheck]:
    """Compare one page of recorded outputs with the storage; ``deep``: their SHA-256 too. Needs the scope ``operate``.

    Go on with ``cursor`` while the answer has a ``next_cursor``.
    """
    values = {"since": None if since is None else since.isoformat(), "batch_id": batch_id, "deep": deep}
    return Call(
        "GET", "/v1/outputs/check", OutputCheck.of, params=_params(values | {"cursor": cursor}), timeout=BULK_SECONDS
    )


def repair_outputs(run: str, job_ids: Sequence[str]) -> Call[tuple[OutputRepair, ...]]:
    """Render jobs again and store their missing outputs where the bytes are the recorded ones.

    Ask again with the same ``run`` while any is ``rendering``. Needs the scope ``operate``.
    """
    return Call(
        "POST",
        "/v1/outputs/repair",
        lambda body: tuple(map(OutputRepair.of, body["data"])),
        json={"run": run, "job_ids": list(job_ids)},
        timeout=BULK_SECONDS,
    )


def drain_worker(name: str) -> Call[Worker]:
    """Let a worker finish what it holds and give it nothing new. Needs the scope ``operate``, as pauses do."""
    return Call("PUT", f"/v1/workers/{_worker(name)}/drain", Worker.of)


def stop_worker(name: str) -> Call[Worker]:
    """Drain a worker and let its process end when it has finished what is on its device."""
    return Call("PUT", f"/v1/workers/{_worker(name)}/stop", Worker.of)


def resume_worker(name: str) -> Call[Worker]:
    """Give a drained worker jobs again."""
    return Call("DELETE", f"/v1/workers/{_worker(name)}/drain", Worker.of)


def _worker(name: str) -> str:
    return "/".join(_segment(part, "worker") for part in name.split("/"))


def pauses() -> Call[dict[str, Any]]:
    """What is paused: ``farm``, ``models`` and ``tenants``."""
    return Call("GET", "/v1/pauses", dict)


def pause(*, model: str | None = None, tenant: str | None = None) -> Call[dict[str, Any]]:
    """Hand nothing over of a model or of a tenant; of the whole farm, if neither is named."""
    return Call("PUT", _pause(model, tenant), dict)


def resume(*, model: str | None = None, tenant: str | None = None) -> Call[dict[str, Any]]:
    """End such a pause."""
    return Call("DELETE", _pause(model, tenant), dict)


def _pause(model: str | None, tenant: str | None) -> str:
    if model is not None and tenant is not None:
        raise BadInput.of("tenant", tenant, "cannot be named together with a model: pause one, then the other")
    if model is not None:
        return f"/v1/pauses/models/{_model(model)}"
    return "/v1/pauses/farm" if tenant is None else f"/v1/pauses/tenants/{_segment(tenant, 'tenant')}"


def keys(tenant: str | None = None) -> Call[tuple[Key, ...]]:
    """API keys: of the caller's own tenant, or of the one of that id."""
    return Call("GET", "/v1/keys", lambda body: tuple(map(Key.of, body["data"])), params=_of(tenant))


def make_key(name: str, scopes: Sequence[Scope] = (), tenant: str | None = None) -> Call[Key]:
    """A new API key; its ``text`` is returned only here."""
    body: dict[str, Any] = {"name": name} | ({"scopes": list(scopes)} if scopes else {})
    return Call("POST", "/v1/keys", Key.of, json=body, params=_of(tenant))


def join_tokens() -> Call[tuple[JoinToken, ...]]:
    """The tokens with which workers on other machines join."""
    return Call("GET", "/v1/join-tokens", lambda body: tuple(map(JoinToken.of, body["data"])))


def make_join_token(name: str, seconds: int | None = None) -> Call[JoinToken]:
    """A new join token, for so long; its ``text`` is returned only here."""
    body = {"name": name} | ({} if seconds is None else {"seconds": seconds})
    return Call("POST", "/v1/join-tokens", JoinToken.of, json=body)


def revoke_join_token(token_id: str) -> Call[JoinToken]:
    """Let nobody else join with a token."""
    return Call("DELETE", f"/v1/join-tokens/{_segment(token_id, 'join token')}", JoinToken.of)


def revoke_key(key_id: str, tenant: str | None = None) -> Call[Key]:
    """End a key at once."""
    return Call("DELETE", f"/v1/keys/{_segment(key_id, 'key')}", Key.of, params=_of(tenant))


def rotate_key(key_id: str, tenant: str | None = None) -> Call[Key]:
    """A second live key of the same name and scopes; its ``text`` is returned only here."""
    path = f"/v1/keys/{_segment(key_id, 'key')}/rotate"
    return Call("POST", path, Key.of, params=_of(tenant))


def _of(tenant: str | None) -> tuple[tuple[str, str], ...]:
    return () if tenant is None else (("tenant", tenant),)


def tenants() -> Call[tuple[dict[str, Any], ...]]:
    """The farm's first 100 tenants, with their caps. Needs the scope ``admin``, as all about tenants does."""
    return Call("GET", "/v1/tenants", lambda body: tuple(body["data"]))


def make_tenant(name: str, **limits: Unpack[TenantLimits]) -> Call[dict[str, Any]]:
    """A new tenant, with ``weight`` and caps as in ``POST /v1/tenants``."""
    return Call("POST", "/v1/tenants", dict, json={"name": name, **limits})


def change_tenant(tenant_id: str, **changes: Unpack[TenantChanges]) -> Call[dict[str, Any]]:
    """Change name, weight or caps; None removes a cap."""
    return Call("PATCH", f"/v1/tenants/{_segment(tenant_id, 'tenant')}", dict, json=changes)


def remove_tenant(tenant_id: str) -> Call[dict[str, Any]]:
    """Remove a tenant that has nothing any more."""
    return Call("DELETE", f"/v1/tenants/{_segment(tenant_id, 'tenant')}", dict)


def usage(
    first: str | None = None, last: str | None = None, tenant: str | None = None
) -> Call[tuple[dict[str, Any], ...]]:
    """Usage by day, tenant and model; days as ``YYYY-MM-DD``, UTC; ``tenant``: ``all`` needs the scope ``admin``."""
    days = tuple((name, value) for name, value in (("from", first), ("to", last)) if value is not None)
    return Call("GET", "/v1/usage", lambda body: tuple(body["data"]), params=days + _of(tenant))


# -- webhooks --------------------------------------------------------------------------------------------------------


def endpoints(*, limit: int | None = None, one_off: bool | None = None) -> Streamed[Endpoint]:
    """Webhook endpoints, newest first. ``one_off``: only those made for a ``webhook`` of jobs and batches, or none."""
    return _pages("/v1/webhooks/endpoints", {"one_off": one_off}, Endpoint.of, limit)


def add_endpoint(
    url: str, *, events: Sequence[EventType] = (), description: str = "", asymmetric: bool = False
) -> Call[Endpoint]:
    """Have events sent to a URL: those of the given types, or the ends of all jobs. It has its ``secret``.

    ``asymmetric``: sign with a key pair too (``v1a``), which the receiver checks with one of its ``public_keys``.
    """
    body: dict[str, Any] = {"url": url, "description": description} | ({"events": [*events]} if events else {})
    body |= {"asymmetric": True} if asymmetric else {}
    return Call("POST", "/v1/webhooks/endpoints", Endpoint.of, json=body)


def endpoint(endpoint_id: str) -> Call[Endpoint]:
    """The endpoint and the state of its deliveries."""
    return Call("GET", _endpoint(endpoint_id), Endpoint.of)


def edit_endpoint(endpoint_id: str, **changes: Unpack[EndpointChanges]) -> Call[Endpoint]:
    """Change its ``url``, ``description``, ``events``, ``enabled`` or ``asymmetric``."""
    return Call("PATCH", _endpoint(endpoint_id), Endpoint.of, json=dict(changes))


def remove_endpoint(endpoint_id: str) -> Call[Endpoint]:
    """Delete the endpoint and its deliveries. Not repeatable: the second call finds nothing."""
    return Call("DELETE", _endpoint(endpoint_id), Endpoint.of, repeatable=False)


def endpoint_secret(endpoint_id: str) -> Call[EndpointSecret]:
    """The secrets that sign its webhooks."""
    return Call("GET", _endpoint(endpoint_id) + "/secret", EndpointSecret.of)


def rotate_secret(endpoint_id: str, *, overlap_seconds: int | None = None) -> Call[EndpointSecret]:
    """Give it a new secret. The old one signs as well for ``overlap_seconds``, or a day."""
    params = _params({"overlap_seconds": overlap_seconds})
    return Call("POST", _endpoint(endpoint_id) + "/rotate", EndpointSecret.of, params=params)


def test_endpoint(endpoint_id: str) -> Call[Delivery]:
    """Send it a ``farm.test`` event."""
    return Call("POST", _endpoint(endpoint_id) + "/test", Delivery.of)


def deliveries(*, limit: int | None = None, **filters: Unpack[DeliveryFilters]) -> Streamed[Delivery]:
    """Deliveries, newest event first: of an ``endpoint_id``, ``state``, ``job_id``, ``type`` or time."""
    return _pages("/v1/webhooks/deliveries", filters, Delivery.of, limit)


def delivery(delivery_id: str) -> Call[Delivery]:
    """The delivery with its attempts."""
    return Call("GET", f"/v1/webhooks/deliveries/{_segment(delivery_id, 'delivery')}", Delivery.of)


def resend(delivery_id: str) -> Call[Delivery]:
    """Send a delivery now, delivered before or not, under the same id."""
    return Call("POST", f"/v1/webhooks/deliveries/{_segment(delivery_id, 'delivery')}/resend", Delivery.of)


def resend_dead(**filters: Unpack[ResendFilters]) -> Call[int]:
    """Send dead deliveries again: all, or of an ``endpoint_id``, ``job_id``, ``type`` or time. Returns how many."""
    # not repeatable: the count of a second call would be another
    path = "/v1/webhooks/deliveries/resend"
    return Call("POST", path, lambda answer: int(answer["count"]), repeatable=False, json=json_values(filters))


# -- how -------------------------------------------------------------------------------------------------------------


def delay(attempt: int, retry_after: str | None = None, now: float = 0.0) -> float:
    """Seconds to wait before trying again after ``attempt`` (0-based) failed.

    The server's ``Retry-After`` (seconds, or a date, which is compared to ``now``) goes before our own schedule; both
    get some jitter, so that clients who failed together do not come back together.
    """
    asked = _seconds(retry_after, now)
    if asked is not None:
        return min(asked, LONGEST_DELAY) * random.uniform(1.0, 1.1)  # noqa: S311 - not a secret
    return min(0.25 * 2.0**attempt, 8.0) * random.uniform(0.5, 1.0)  # noqa: S311


def infer_task(roles: Collection[str]) -> Task:
    """The first task that needs no other inputs than these, and takes them all.

    Raises:
        BadInput: there is none.
    """
    given = set(roles)
    for task, inputs in TASK_INPUTS.items():
        needed = {role for role, (least, _) in inputs.items() if least}
        if needed <= given <= set(inputs) and (given or not inputs or not needed):
            return task
    takers = [f"{task} takes {' and '.join(inputs)}" for task, inputs in TASK_INPUTS.items() if given & set(inputs)]
    raise BadInput.of("task", ", ".join(sorted(given)), f"no task takes just these inputs: {'; '.join(takers)}")


def reference(image: object) -> str | None:
    """The image as a reference that the farm understands; None if its bytes must be uploaded."""
    if isinstance(image, Job | File):
        return image.id
    if isinstance(image, Output):
        return f"{image.job_id}/{image.index}"
    return image if isinstance(image, str) and _REFERENCE.fullmatch(image) else None


def read_image(field_name: str, image: object) -> tuple[str, bytes]:
    """A name and the encoded bytes of an image that must be uploaded. Raises `BadInput` if it cannot be read."""
    if isinstance(image, bytes):
        return field_name, image
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            return path.name, path.read_bytes()
        except OSError as error:
            raise BadInput.of(field_name, str(path), f"{path} cannot be read: {error.strerror}") from error
    if hasattr(image, "save") and hasattr(image, "mode"):  # a Pillow image, without importing Pillow
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=1)
        return f"{field_name}.png", buffer.getvalue()
    raise BadInput.of(field_name, type(image).__name__, "must be a path, bytes, a Pillow image or a reference")


def _pages(path: str, filters: Mapping[str, Any], read: Callable[[Any], T], limit: int | None) -> Streamed[T]:
    """What a list has, page after page."""

    def steps() -> Flow[None]:
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            size = 100 if left is None else min(left, 100)
            params = _params({**filters, "limit": size, "cursor": cursor})
            body = yield Call("GET", path, whole, params=params)
            for one in body["data"]:
                yield Emit(read(one))
            cursor = body.get("next")
            if left is not None:
                left -= len(body["data"])
            if not cursor:
                return

    return Streamed(steps)


def _lines(call: Call[Any], read: Callable[[Any], T]) -> Streamed[T]:
    """The JSON lines of a streamed answer. Raises `Unreachable` if it breaks before its end."""

    def steps() -> Flow[None]:
        yield Open(call, StreamFormat.LINES)
        while (line := (yield Stream.NEXT)) is not None:
            yield Emit(read(line))
        yield Stream.CLOSE

    return Streamed(steps)


def _bulk(
    source: Source,
    content_type: str | None,
    query: Mapping[str, Any],
    idempotency_key: str | None,
    read: Callable[[Any], T],
) -> Call[T]:
    """A body of jobs, in one streamed request. Its key makes it repeatable, if the body can be read again."""
    repeatable = True
    if content_type is None:
        suffix = Path(source).suffix if isinstance(source, os.PathLike) else ""
        content_type = CSV if suffix.lower() == ".csv" else JSONL
    content: Callable[[], Iterable[bytes]]
    if isinstance(source, bytes):
        content = partial(_parts, io.BytesIO, source)
    elif isinstance(source, os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise BadInput.of("file", str(path), f"there is no file {path}")
        content = partial(_parts, path.open, "rb")
    elif isinstance(source, Sequence):
        requests, content_type = source, JSONL
        content = partial(map, lambda one: json.dumps(dict(one)).encode() + b"\n", requests)
    else:
        opened, repeatable = source, False
        content = partial(_parts, contextlib.nullcontext, opened)
    return Call(
        "POST",
        "/v1/batches",
        read,
        repeatable=repeatable,
        params=_params(query),
        headers=_named(idempotency_key) | {"Content-Type": content_type},
        content=content,
        timeout=BULK_SECONDS,
    )


def _parts(opening: Callable[..., Any], *arguments: Any) -> Iterator[bytes]:
    """A file's content, piece by piece."""
    with opening(*arguments) as file:
        while part := file.read(_PART_BYTES):
            yield part


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


def _segment(name: str, kind: str, form: str = r"[A-Za-z0-9_-]{1,80}") -> str:
    """An id as one segment of a path: what is no id must not reach another route."""
    if not re.fullmatch(form, name) or not name.strip("."):
        raise BadInput.of(kind, name, f"{name!r} is no {kind} id")
    return name


def _model(model_id: str) -> str:
    """A model's id as a part of a path."""
    return "/".join(_segment(part, "model", r"[A-Za-z0-9._-]{1,200}") for part in model_id.split("/"))


def _batch(batch_id: str) -> str:
    return f"/v1/batches/{_segment(batch_id, 'batch')}"


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
