"""A job as everything outside the store sees it: frozen values, no rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Self

from pydantic import Field, StringConstraints

from farm.domain import ids
from farm.domain.job_spec import JobSpec
from farm.domain.media import SUSPICIOUS, MediaMetadata, pixels
from farm.domain.states import EventType, JobState, Priority
from farm.fields import CustomId, FrozenValue, Moment, NoNul, Storable
from farm.tasks import TaskName

#: What a retry copies of the old job: it is the same request again. Times are not copied: they may have passed.
RETRY_FIELDS: Final = ("spec", "priority", "custom_id", "metadata", "webhook", "webhook_events", "max_attempts", "pin")
#: What a variant copies, which has another spec: it is another request, without a name and without a webhook.
VARIANT_FIELDS: Final = ("priority", "metadata", "max_attempts")


@dataclass(frozen=True)
class NewJob:
    """A job about to be submitted: everything but its id, which submitting gives."""

    spec: JobSpec
    priority: Priority = Priority.NORMAL
    custom_id: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    webhook: str | None = None
    webhook_events: tuple[EventType, ...] | None = None  #: sent to ``webhook``; None: how the job ended
    max_attempts: int = 3
    retry_of: str | None = None  #: the job whose spec this one repeats
    not_before: datetime | None = None  #: not dispatched before this time
    deadline: datetime | None = None  #: fails if it still waits then
    #: what it is pinned to: a numerics class, or the id of the batch whose jobs all get the class of the first
    pin: str | None = None

    @classmethod
    def retry(cls, old: Job) -> Self:
        """The job that repeats a failed or canceled one."""
        return cls(**_copied(old, RETRY_FIELDS), retry_of=old.id)

    @classmethod
    def variant(cls, old: Job, spec: JobSpec, priority: Priority | None = None) -> Self:
        """The job that asks for another spec, and maybe another priority, than an old one."""
        copied = _copied(old, VARIANT_FIELDS)
        return cls(**copied | {"spec": spec} | ({} if priority is None else {"priority": priority}))


def _copied(old: Job, names: tuple[str, ...]) -> dict[str, Any]:
    copied = {name: getattr(old, name) for name in names}
    return copied | {"metadata": tuple(old.metadata.items())}


@dataclass(frozen=True)
class Output:
    """One file in object storage."""

    index: int  #: 0-based position among the job's outputs
    key: str  #: object key
    media_type: str  #: ``image/png``
    size: int  #: bytes
    sha256: str  #: of the file's bytes, hex
    seed: int
    metadata: MediaMetadata = field(default_factory=dict)

    @property
    def width(self) -> int | None:
        """Pixels; None for media without."""
        return pixels(self.metadata, "width")

    @property
    def height(self) -> int | None:
        """Pixels; None for media without."""
        return pixels(self.metadata, "height")

    @property
    def suspicion(self) -> str:
        """Why it looks wrong, one of `media.SUSPICIONS`; empty: it does not."""
        return str(self.metadata.get(SUSPICIOUS, ""))


@dataclass(frozen=True)
class JobError:
    """Why a job failed, or why its last attempt did."""

    code: str  #: stable, machine-readable
    message: str  #: one sentence for a person


@dataclass(frozen=True)
class Progress:
    """Progress of the current attempt."""

    step: int  #: denoising steps done
    steps: int  #: denoising steps in all


@dataclass(frozen=True)
class Job:
    """One request to one pipeline, and its state."""

    id: str
    tenant_id: str
    state: JobState
    spec: JobSpec
    priority: Priority
    epoch: int  #: the fencing number: goes up at each dispatch
    attempts: int  #: claims so far, less those released through no fault of the job
    max_attempts: int
    worker: str | None  #: who holds or held it last
    progress: Progress | None
    outputs: tuple[Output, ...]
    error: JobError | None
    recipe: dict[str, object] | None  #: what the worker adds to the spec: versions, revision, dtype, device
    custom_id: str | None
    metadata: dict[str, str]
    webhook: str | None
    cost: float  #: megapixel-steps
    cancel_requested: bool
    retry_of: str | None
    created_at: datetime
    available_at: datetime  #: not dispatched before this time
    dispatched_at: datetime | None
    claimed_at: datetime | None
    started_at: datetime | None  #: when the device took it up
    finished_at: datetime | None
    deadline: datetime | None = None  #: fails if it still waits then
    batch_id: str | None = None  #: the batch it was submitted in
    batch_seq: int | None = None  #: its place there, from 1
    webhook_events: tuple[EventType, ...] | None = None  #: sent to ``webhook``; None: how the job ended
    crash_count: int = 0  #: workers that died while it was on their device
    warnings: tuple[str, ...] = ()  #: what is odd about its outputs, one sentence each
    #: what it is pinned to: a numerics class, or the id of the batch whose jobs all get the class of the first
    pin: str | None = None
    steps_resumed: int = 0  #: denoising steps that its last attempt took from a checkpoint
    preemptions: int = 0  #: how often it stepped back for an interactive job
    # what `farm.services.waiting` adds where a job is looked at
    waiting_reason: str | None = None  #: why it has not started, one clause
    position: int | None = None  #: in its queue, from 1: an estimate
    eta_seconds: float | None = None  #: until it has finished: an estimate
    dependents: int = 0  #: jobs that have an output of it as an input

    @property
    def depends_on(self) -> tuple[str, ...]:
        """The jobs whose outputs are its inputs."""
        return self.spec.depends_on


FilterText = Annotated[str, StringConstraints(max_length=300), Storable, NoNul]


class JobFilter(FrozenValue):
    """Which jobs. A field that is absent does not filter."""

    state: tuple[JobState, ...] = Field((), max_length=len(JobState), description="Any of these states.")
    task: TaskName | None = None
    model: FilterText | None = None
    custom_id: CustomId | None = None
    batch_id: Annotated[str, StringConstraints(pattern=ids.pattern(ids.BATCH))] | None = None
    error_code: FilterText | None = Field(None, description="Why the jobs failed.")
    worker: FilterText | None = Field(None, description="The worker that has the jobs, or had them last.")
    created_after: Moment | None = None
    created_before: Moment | None = None


@dataclass(frozen=True)
class Selection:
    """The jobs of a tenant that one request is about: those it names, or all that match."""

    job_ids: tuple[str, ...] | None = None
    wanted: JobFilter = field(default_factory=JobFilter)  #: where none are named


@dataclass(frozen=True)
class HeldJob:
    """A job in a worker's hands."""

    job_id: str
    epoch: int


@dataclass(frozen=True)
class JobResult:
    """What a worker made of a job that it holds."""

    held: HeldJob
    outputs: tuple[Output, ...]
    recipe: dict[str, Any]
    steps: int | None = None  #: denoising steps, where it is not noted yet that the device took the job up
    seconds: float | None = None  #: since then, likewise
    warnings: tuple[str, ...] = ()  #: what is odd about the outputs, one sentence each
