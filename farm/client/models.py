"""What the farm's API answers, as frozen values. Fields that a later farm adds are ignored here and kept in ``raw``.

The file is long because it has one class per schema of the API.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from farm.client import notebook
from farm.domain.media import extension_of

TERMINAL: Final = frozenset({"succeeded", "failed", "canceled"})

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """Progress of the current attempt."""

    step: int  #: denoising steps done
    steps: int  #: denoising steps in all


@dataclass(frozen=True)
class JobError:
    """Why a job failed, or why its last attempt did."""

    code: str
    message: str


@dataclass(frozen=True)
class FieldError:
    """One field of a request that the farm refused."""

    field: str
    value: object
    message: str
    line: int | None = None  #: of a bulk request, from 1

    def __str__(self) -> str:
        text = f"{self.field}: {self.message}"
        return text if self.line is None else f"line {self.line}: {text}"


@dataclass(frozen=True)
class Output:
    """One output file of a job."""

    job_id: str
    index: int  #: 0-based position among the job's outputs
    url: str  #: presigned: works without a key, for a while
    media_type: str  #: ``image/png``
    size: int  #: bytes
    sha256: str  #: of the file's bytes, hex
    seed: int
    width: int | None  #: pixels; None for media without
    height: int | None  #: pixels; None for media without
    metadata: dict[str, Any]  #: all that is known of the content

    @property
    def suffix(self) -> str:
        """The file name's ending that the media type asks for."""
        extension = extension_of(self.media_type)
        return f".{extension}" if extension else ""


@dataclass(frozen=True)
class Job:
    """One request to one pipeline, and its state."""

    id: str
    state: str  #: ``pending``, ``queued``, ``dispatched``, ``running``, ``succeeded``, ``failed`` or ``canceled``
    task: str
    model: str
    priority: str
    progress: Progress | None
    outputs: tuple[Output, ...]
    error: JobError | None
    attempts: int
    steps_resumed: int  #: denoising steps that its last attempt took from a checkpoint of an earlier one
    preemptions: int  #: how often it stepped back for an interactive job
    worker: str | None
    parameters: dict[str, Any]  #: what to send to get the same images
    custom_id: str | None
    metadata: dict[str, str]
    retry_of: str | None
    warnings: tuple[str, ...]  #: what is odd about the outputs, one sentence each
    depends_on: tuple[str, ...]  #: the jobs whose outputs are its inputs
    dependents: int  #: jobs that have an output of it as an input
    created_at: datetime | None
    raw: dict[str, Any] = field(repr=False, compare=False)  #: the whole answer

    @property
    def over(self) -> bool:
        """Whether the state is a terminal one, which never changes."""
        return self.state in TERMINAL

    @property
    def succeeded(self) -> bool:
        """Whether there are images."""
        return self.state == "succeeded"

    @classmethod
    def of(cls, raw: Json) -> Job:
        """The job that an answer describes."""
        progress, error = raw.get("progress"), raw.get("error")
        return cls(
            id=str(raw["id"]),
            state=str(raw["state"]),
            task=str(raw["task"]),
            model=str(raw["model"]),
            priority=str(raw.get("priority", "normal")),
            progress=Progress(progress["step"], progress["steps"]) if progress else None,
            outputs=tuple(_output(str(raw["id"]), index, one) for index, one in enumerate(raw.get("outputs") or ())),
            error=JobError(str(error["code"]), str(error["message"])) if error else None,
            attempts=int(raw.get("attempts") or 0),
            steps_resumed=int(raw.get("steps_resumed") or 0),
            preemptions=int(raw.get("preemptions") or 0),
            worker=raw.get("worker"),
            parameters=dict(raw.get("parameters") or {}),
            custom_id=raw.get("custom_id"),
            metadata=dict(raw.get("metadata") or {}),
            retry_of=raw.get("retry_of"),
            warnings=tuple(map(str, raw.get("warnings") or ())),
            depends_on=tuple(map(str, raw.get("depends_on") or ())),
            dependents=int(raw.get("dependents") or 0),
            created_at=_time(raw.get("created_at")),
            raw=dict(raw),
        )


@dataclass(frozen=True)
class CancelReport:
    """The result of canceling many jobs."""

    matched: int  #: selected jobs that had not finished
    canceled: int  #: those that waited
    stopping: int  #: those that ran, and stop at their next step
    complete: bool  #: whether all were reached; if not, call again
    raw: dict[str, Any] = field(repr=False, compare=False)  #: the whole answer

    @classmethod
    def of(cls, raw: Json) -> CancelReport:
        """The report that an answer gives."""
        return cls(int(raw["matched"]), int(raw["canceled"]), int(raw["stopping"]), bool(raw["complete"]), dict(raw))


@dataclass(frozen=True)
class RetryReport:
    """The result of retrying many jobs."""

    matched: int  #: jobs that were meant, failed or were canceled, and were not retried since
    submitted: int  #: new jobs
    raw: dict[str, Any] = field(repr=False, compare=False)  #: the whole answer

    @classmethod
    def of(cls, raw: Json) -> RetryReport:
        """The report that an answer gives."""
        return cls(int(raw["matched"]), int(raw["submitted"]), dict(raw))


@dataclass(frozen=True)
class File:
    """An uploaded file."""

    id: str
    media_type: str  #: ``image/png``
    size: int  #: bytes
    sha256: str
    width: int | None  #: pixels; None for media without
    height: int | None  #: pixels; None for media without
    metadata: dict[str, Any]  #: all that is known of the content

    @classmethod
    def of(cls, raw: Json) -> File:
        """The file that an answer describes."""
        return cls(
            id=str(raw["id"]),
            media_type=str(raw.get("media_type") or ""),
            size=int(raw.get("size") or 0),
            sha256=str(raw.get("sha256") or ""),
            width=raw.get("width"),
            height=raw.get("height"),
            metadata=dict(raw.get("metadata") or {}),
        )


@dataclass(frozen=True)
class Model:
    """A model of the registry."""

    id: str
    description: str
    tasks: tuple[str, ...]
    defaults: dict[str, Any]
    limits: dict[str, Any]
    vocabulary: dict[str, tuple[str, ...]]  #: words the model knows, by kind, where it knows only some
    example_prompts: tuple[str, ...]
    schemas: dict[str, dict[str, Any]]  #: by task, the JSON Schema of its requests; empty in a list of models
    state: str  #: ``ready``, ``checking``, ``failed`` or ``removed``
    report: dict[str, Any]  #: what its check on a worker found
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> Model:
        """The model that an answer describes."""
        return cls(
            id=str(raw["id"]),
            description=str(raw.get("description") or ""),
            tasks=tuple(raw.get("tasks") or ()),
            defaults=dict(raw.get("defaults") or {}),
            limits=dict(raw.get("limits") or {}),
            vocabulary={kind: tuple(words) for kind, words in (raw.get("vocabulary") or {}).items()},
            example_prompts=tuple(raw.get("example_prompts") or ()),
            schemas=dict(raw.get("schemas") or {}),
            state=str(raw.get("state") or "ready"),
            report=dict(raw.get("report") or {}),
            raw=dict(raw),
        )


@dataclass(frozen=True)
class NumericsClass:
    """What exact outputs depend on besides their recipes: workers of one class give the same bytes."""

    name: str
    facts: Mapping[str, str]  #: what decides the bits
    workers: tuple[str, ...]  #: the online workers of this class
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> NumericsClass:
        """The class that an answer describes."""
        return cls(str(raw["class"]), dict(raw["facts"]), tuple(raw["workers"]), dict(raw))


@dataclass(frozen=True)
class FoundOutput:
    """An output with what it is found by."""

    job_id: str
    index: int  #: its position among the job's outputs, from 0
    output: Output
    prompt: str
    model: str
    task: str
    batch_id: str | None
    custom_id: str | None
    star: bool
    tags: tuple[str, ...]
    collections: tuple[str, ...]
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> FoundOutput:
        """The output that an answer describes."""
        return cls(
            job_id=str(raw["job_id"]),
            index=int(raw["index"]),
            output=_output(str(raw["job_id"]), int(raw["index"]), raw),
            prompt=str(raw["prompt"]),
            model=str(raw["model"]),
            task=str(raw["task"]),
            batch_id=raw["batch_id"],
            custom_id=raw["custom_id"],
            star=bool(raw["star"]),
            tags=tuple(raw["tags"]),
            collections=tuple(raw["collections"]),
            raw=dict(raw),
        )


@dataclass(frozen=True)
class DamagedOutput:
    """An output whose object is not what the farm recorded."""

    job_id: str
    index: int  #: its position among the job's outputs
    key: str  #: of the object
    damage: str  #: ``missing``, ``size`` or ``sha256``
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> DamagedOutput:
        """The output that an answer describes."""
        return cls(str(raw["job_id"]), int(raw["index"]), str(raw["key"]), str(raw["damage"]), dict(raw))


@dataclass(frozen=True)
class OutputCheck:
    """What a check of one page of jobs found."""

    checked: int  #: outputs
    damaged: tuple[DamagedOutput, ...]
    next_cursor: str | None  #: of the next page; None: this is the last one

    @classmethod
    def of(cls, raw: Json) -> OutputCheck:
        """The page that an answer describes."""
        return cls(int(raw["checked"]), tuple(map(DamagedOutput.of, raw["damaged"])), raw["next_cursor"])


@dataclass(frozen=True)
class OutputRepair:
    """The repair of one job's outputs."""

    job_id: str
    state: str  #: ``rendering``, ``repaired`` or ``impossible``
    reason: str | None  #: why it is impossible
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> OutputRepair:
        """The repair that an answer describes."""
        return cls(str(raw["job_id"]), str(raw["state"]), raw["reason"], dict(raw))


@dataclass(frozen=True)
class Worker:
    """Who renders."""

    name: str
    state: str  #: ``online``, ``draining`` or ``offline``
    device: str  #: the device's name
    memory_bytes: int
    dtype: str
    slots: int  #: jobs its device renders at once
    held_jobs: int  #: jobs dispatched to it or running on it
    models: tuple[str, ...]  #: what is in its memory
    heartbeat_at: datetime | None
    drained_reason: str | None  #: why it gets no jobs until somebody resumes it
    stopping: bool  #: whether its process was asked to end and has not yet
    numerics: str | None  #: its numerics class
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> Worker:
        """The worker that an answer describes."""
        described: Json = raw.get("device") or {}
        return cls(
            name=str(raw["name"]),
            state=str(raw["state"]),
            device=str(described.get("name") or ""),
            memory_bytes=int(described.get("memory_bytes") or 0),
            dtype=str(described.get("dtype") or ""),
            slots=int(raw.get("slots") or 0),
            held_jobs=int(raw.get("held_jobs") or 0),
            models=tuple(raw.get("models") or ()),
            heartbeat_at=_time(raw.get("heartbeat_at")),
            drained_reason=raw.get("drained_reason"),
            stopping=bool(raw.get("stopping")),
            numerics=None if raw.get("numerics") is None else str(raw["numerics"]["class"]),
            raw=dict(raw),
        )


@dataclass(frozen=True)
class Key:
    """An API key."""

    id: str
    tenant_id: str  #: whose key it is
    name: str
    scopes: tuple[str, ...]
    created_at: datetime | None
    revoked_at: datetime | None
    text: str | None = field(repr=False)  #: the key itself: only in the answer that made it
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> Key:
        """The key that an answer describes."""
        return cls(
            id=str(raw["id"]),
            tenant_id=str(raw.get("tenant_id") or ""),
            name=str(raw.get("name") or ""),
            scopes=tuple(raw.get("scopes") or ()),
            created_at=_time(raw.get("created_at")),
            revoked_at=_time(raw.get("revoked_at")),
            text=raw.get("key"),
            raw=dict(raw),
        )


@dataclass(frozen=True)
class JoinToken:
    """A token with which workers on other machines join."""

    id: str
    name: str
    created_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    text: str | None = field(repr=False)  #: the token itself: only in the answer that made it
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> JoinToken:
        """The token that an answer describes."""
        return cls(
            id=str(raw["id"]),
            name=str(raw.get("name") or ""),
            created_at=_time(raw.get("created_at")),
            expires_at=_time(raw.get("expires_at")),
            revoked_at=_time(raw.get("revoked_at")),
            last_used_at=_time(raw.get("last_used_at")),
            text=raw.get("token"),
            raw=dict(raw),
        )


@dataclass(frozen=True)
class Batch:
    """Many jobs submitted together."""

    id: str
    state: str  #: ``in_progress``, ``paused``, ``canceling``, ``completed`` or ``canceled``
    name: str | None
    counts: dict[str, int]  #: jobs by state, and their ``total``
    progress: float  #: finished jobs, from 0 to 1
    jobs_per_second: float | None  #: as measured; None until two jobs have finished
    eta_seconds: float | None
    suspicious_output: int  #: jobs that succeeded with an output that looks wrong
    skipped: int  #: lines that were refused when it was submitted
    retry_of: str | None
    same_as: str | None  #: in the answer that submitted it: a recent batch of an equal request
    created_at: datetime | None
    raw: dict[str, Any] = field(repr=False, compare=False)

    @property
    def over(self) -> bool:
        """Whether every job has finished."""
        return self.state in ("completed", "canceled")

    @property
    def total(self) -> int:
        """Jobs in all."""
        return self.counts.get("total", 0)

    @property
    def ended(self) -> int:
        """Finished jobs."""
        return sum(self.counts.get(state, 0) for state in TERMINAL)

    @property
    def done(self) -> int:
        """Jobs that succeeded or failed; canceled ones were not tried to their end."""
        return self.counts.get("succeeded", 0) + self.counts.get("failed", 0)

    @classmethod
    def of(cls, raw: Json) -> Batch:
        """The batch that an answer describes."""
        return cls(
            id=str(raw["id"]),
            state=str(raw["state"]),
            name=raw.get("name"),
            counts={str(state): int(count) for state, count in raw["request_counts"].items()},
            progress=float(raw.get("progress") or 0),
            jobs_per_second=raw.get("jobs_per_second"),
            eta_seconds=raw.get("eta_seconds"),
            suspicious_output=int(raw.get("suspicious_output") or 0),
            skipped=int(raw.get("skipped") or 0),
            retry_of=raw.get("retry_of"),
            same_as=raw.get("same_as"),
            created_at=_time(raw.get("created_at")),
            raw=dict(raw),
        )


@dataclass(frozen=True)
class Deletion:
    """What deleting a batch removed, or would."""

    batch_id: str
    dry_run: bool
    jobs: int
    outputs: int
    bytes: int  #: of the outputs

    @classmethod
    def of(cls, raw: Json) -> Deletion:
        """What an answer describes."""
        return cls(
            str(raw["id"]), bool(raw["dry_run"]), int(raw["jobs"]), int(raw["outputs"]), int(raw.get("bytes") or 0)
        )


@dataclass(frozen=True)
class Event:
    """One event of a job or batch that is followed."""

    type: str  #: ``job``, ``batch``, ``progress``, or the name of an event of the history: ``job.succeeded``
    data: dict[str, Any] = field(repr=False)
    id: str | None  #: the last one of the history so far; following again from it repeats nothing


@dataclass(frozen=True)
class DryRun:
    """The result of a dry run of a batch."""

    jobs: int  #: that would be queued
    refused: int  #: lines that would not be taken
    cost: float  #: megapixel-steps
    estimated_seconds: tuple[float, float] | None  #: from and to, for these jobs alone; None while nothing is known
    same_as: str | None  #: a recent batch of an equal request
    errors: tuple[FieldError, ...]  #: the first of what is wrong
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> DryRun:
        """What an answer describes."""
        seconds = raw.get("estimated_seconds")
        return cls(
            jobs=int(raw["jobs"]),
            refused=int(raw["refused"]),
            cost=float(raw["cost"]),
            estimated_seconds=None if seconds is None else (float(seconds["low"]), float(seconds["high"])),
            same_as=raw.get("same_as"),
            errors=tuple(
                FieldError(str(one["field"]), one.get("value"), str(one["message"]), one.get("line"))
                for one in raw.get("errors") or ()
            ),
            raw=dict(raw),
        )


@dataclass(frozen=True)
class Result:
    """What became of one job of a batch."""

    seq: int  #: its place in the batch, from 1
    job_id: str
    custom_id: str | None
    state: str
    outputs: tuple[Output, ...]
    error: JobError | None

    @classmethod
    def of(cls, raw: Json) -> Result:
        """The result that a line describes."""
        error = raw.get("error")
        return cls(
            seq=int(raw["seq"]),
            job_id=str(raw["id"]),
            custom_id=raw.get("custom_id"),
            state=str(raw["state"]),
            outputs=tuple(_output(str(raw["id"]), index, one) for index, one in enumerate(raw.get("outputs") or ())),
            error=JobError(str(error["code"]), str(error["message"])) if error else None,
        )


@dataclass(frozen=True)
class Artifact:
    """One downloaded output of a job."""

    output: Output
    data: bytes = field(repr=False)  #: the encoded file

    @property
    def media_type(self) -> str:
        """What the file is: ``image/png``."""
        return self.output.media_type

    @property
    def seed(self) -> int:
        """The seed that it was rendered from."""
        return self.output.seed

    @property
    def width(self) -> int | None:
        """Pixels; None for media without."""
        return self.output.width

    @property
    def height(self) -> int | None:
        """Pixels; None for media without."""
        return self.output.height

    @property
    def caption(self) -> str:
        """Which output it is, in a few words."""
        return f"seed {self.seed}, {self.output.job_id}/{self.output.index}"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file.

        Args:
            path: the file, which is overwritten, or an existing directory, where it is named after job and index.

        Returns:
            The file.
        """
        file = Path(path)
        if file.is_dir():
            file /= f"{self.output.job_id}-{self.output.index}{self.output.suffix}"
        file.write_bytes(self.data)
        return file

    def _repr_html_(self) -> str:
        """What a notebook shows: the image, or a player."""
        return notebook.file_html(self)


@dataclass(frozen=True)
class Rendered:
    """A job that succeeded, with what it rendered."""

    job: Job
    artifacts: tuple[Artifact, ...] = field(repr=False)  #: in the order of ``job.outputs``

    @property
    def images(self) -> tuple[Artifact, ...]:
        """Those that are images."""
        return tuple(one for one in self.artifacts if one.media_type.startswith("image/"))

    def _repr_html_(self) -> str:
        """What a notebook shows: all outputs, with the prompt."""
        return notebook.job_html(self.artifacts, str(self.job.parameters.get("prompt") or ""))


@dataclass(frozen=True)
class Endpoint:
    """Where webhooks are sent."""

    id: str
    url: str
    description: str
    events: tuple[str, ...]
    enabled: bool
    one_off: bool  #: made for the ``webhook`` of jobs
    disabled_reason: str | None  #: ``gone``, ``failing`` or ``requested``
    failing_since: datetime | None
    created_at: datetime | None
    secret: str | None = field(repr=False)  #: only in the answer that made it
    public_keys: tuple[str, ...]  #: what ``v1a`` signatures are checked with, newest first; none were asked for: empty
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> Endpoint:
        """The endpoint that an answer describes."""
        return cls(
            id=str(raw["id"]),
            url=str(raw["url"]),
            description=str(raw.get("description") or ""),
            events=tuple(raw.get("events") or ()),
            enabled=bool(raw.get("enabled")),
            one_off=bool(raw.get("one_off")),
            disabled_reason=raw.get("disabled_reason"),
            failing_since=_time(raw.get("failing_since")),
            created_at=_time(raw.get("created_at")),
            secret=raw.get("secret"),
            public_keys=tuple(str(one["key"]) for one in raw.get("public_keys") or ()),
            raw=dict(raw),
        )


@dataclass(frozen=True)
class EndpointSecret:
    """The secrets that sign an endpoint's webhooks."""

    secret: str = field(repr=False)  #: ``whsec_…``
    previous: tuple[tuple[str, datetime | None], ...] = field(repr=False)  #: older ones, and until when they sign
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> EndpointSecret:
        """The secrets that an answer tells."""
        previous = tuple((str(one["secret"]), _time(one.get("expires_at"))) for one in raw.get("previous") or ())
        return cls(str(raw["secret"]), previous, dict(raw))


@dataclass(frozen=True)
class DeliveryAttempt:
    """One request of a delivery and what came back."""

    number: int
    at: datetime | None
    status: int | None
    seconds: float
    error: str | None
    response: str


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one endpoint."""

    id: str  #: the ``webhook-id``
    endpoint_id: str
    type: str
    job_id: str | None
    state: str  #: ``pending``, ``delivered`` or ``dead``
    attempt_count: int
    status: int | None  #: of the last answer
    error: str | None
    next_attempt_at: datetime | None
    created_at: datetime | None
    attempts: tuple[DeliveryAttempt, ...]  #: only of a delivery that was asked for by its id
    raw: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, raw: Json) -> Delivery:
        """The delivery that an answer describes."""
        return cls(
            id=str(raw["id"]),
            endpoint_id=str(raw["endpoint_id"]),
            type=str(raw["type"]),
            job_id=raw.get("job_id"),
            state=str(raw["state"]),
            attempt_count=int(raw.get("attempt_count") or 0),
            status=raw.get("status"),
            error=raw.get("error"),
            next_attempt_at=_time(raw.get("next_attempt_at")),
            created_at=_time(raw.get("created_at")),
            attempts=tuple(
                DeliveryAttempt(
                    int(one["number"]),
                    _time(one.get("at")),
                    one.get("status"),
                    float(one.get("seconds") or 0),
                    one.get("error"),
                    str(one.get("response") or ""),
                )
                for one in raw.get("attempts") or ()
            ),
            raw=dict(raw),
        )


def _output(job_id: str, index: int, raw: Json) -> Output:
    return Output(
        job_id=job_id,
        index=int(raw.get("index", index)),
        url=str(raw["url"]),
        media_type=str(raw.get("media_type") or ""),
        size=int(raw.get("size") or 0),
        sha256=str(raw["sha256"]),
        seed=int(raw["seed"]),
        width=raw.get("width"),
        height=raw.get("height"),
        metadata=dict(raw.get("metadata") or {}),
    )


def _time(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None
