"""What the API answers with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from farm.domain import ids
from farm.domain.job import Job, Output
from farm.domain.media import MediaMetadata
from farm.domain.model import Model, ModelLimits, ModelState
from farm.domain.model_schema import task_schema
from farm.domain.numerics import ONE, Numerics
from farm.domain.states import JobState, Priority
from farm.domain.worker import Worker, WorkerState
from farm.objects import keys
from farm.objects.storage import Storage
from farm.settings import Settings
from farm.store.files import StoredFile
from farm.store.numerics import KnownNumerics
from farm.store.tenants import Key, Scope
from farm.tasks import TaskName


class Schema(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ProgressSchema(Schema):
    """Progress of the current attempt."""

    step: int = Field(description="Denoising steps done.")
    steps: int = Field(description="All denoising steps.")
    fraction: float = Field(description="From 0 to 1.")


class OutputSchema(Schema):
    """One output file of a job."""

    index: int = Field(description="Its position among the job's outputs, from 0. It stays when others are deleted.")
    url: str = Field(description="A download URL that needs no key and expires. Read the job again for a new one.")
    media_type: str = Field(description="`image/png`, for instance.")
    size: int = Field(description="Bytes.")
    sha256: str = Field(description="SHA-256 of the file's bytes.")
    seed: int
    width: int | None = Field(description="Pixels; null for media without a size.")
    height: int | None = Field(description="Pixels; null for media without a size.")
    metadata: MediaMetadata = Field(description="Properties of the content, such as `width` and `height`.")


class ErrorSchema(Schema):
    """Why the job failed, or why its last attempt did."""

    code: str = Field(description="Stable, for programs.")
    message: str = Field(description="One sentence, for people.")


class TimingsSchema(Schema):
    """How long each part took, in seconds; null while unknown. Of the last attempt, but for the total."""

    queued_seconds: float | None = Field(description="From the submission to the last dispatch to a worker.")
    dispatch_seconds: float | None = Field(description="From the dispatch to the worker's claim.")
    waiting_seconds: float | None = Field(description="At the worker, before the job started on its device.")
    rendering_seconds: float | None = Field(description="On the device, to the end of the job.")
    total_seconds: float | None = Field(description="From the submission to the end.")

    @classmethod
    def of(cls, job: Job) -> Self:
        """Derived from the job's times."""
        dispatched, claimed, started = _times(job)
        return cls(
            queued_seconds=_between(job.created_at, dispatched),
            dispatch_seconds=_between(dispatched, claimed),
            waiting_seconds=_between(claimed, started),
            rendering_seconds=_between(started, job.finished_at),
            total_seconds=_between(job.created_at, job.finished_at),
        )


def _times(job: Job) -> tuple[datetime | None, datetime | None, datetime | None]:
    """When the attempt was dispatched, claimed and started; a queued job's row still has those of the last one."""
    if job.state in (JobState.PENDING, JobState.QUEUED):
        return None, None, None
    return job.dispatched_at, job.claimed_at, job.started_at


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else max(0.0, round((end - start).total_seconds(), 6))


class JobSchema(Schema):
    """One request to one pipeline, and its state."""

    id: str
    state: JobState
    task: TaskName
    model: str
    priority: Priority
    progress: ProgressSchema | None
    outputs: list[OutputSchema]
    error: ErrorSchema | None
    attempts: int
    max_attempts: int
    steps_resumed: int = Field(
        description="Denoising steps that its last attempt took from a checkpoint of an earlier one."
    )
    preemptions: int = Field(description="How often it stepped back for an interactive job, with its work kept.")
    worker: str | None = Field(description="The worker that has it, or had it last.")
    parameters: dict[str, Any] = Field(description="Sent again, they give the same outputs.")
    warnings: list[str] = Field(
        description="What is odd about the outputs, one sentence each: a prompt that was cut, an output of one colour."
    )
    timings: TimingsSchema
    custom_id: str | None
    metadata: dict[str, str]
    webhook: str | None
    retry_of: str | None = Field(description="The job that this one repeats.")
    batch_id: str | None = Field(description="The batch that it was submitted in.")
    depends_on: list[str] = Field(description="The jobs whose outputs are its inputs.")
    dependents: int = Field(description="How many jobs have an output of it as an input.")
    recipe: dict[str, Any] | None = Field(
        description="What the worker adds: revision, dtype, device, library versions."
    )
    numerics: str | None = Field(
        description="The numerics class that it asked for; `one`: its batch asked for one class for all jobs."
    )
    waiting_reason: str | None = Field(
        description=(
            "Why it has not started: a pause, no worker that fits, a time, or the jobs before it. In lists, and "
            "where it was just submitted, only what blocks it. null: it is about to start, or does not wait."
        )
    )
    position: int | None = Field(
        description="Its place in the queue, from 1: an estimate from priorities and fair shares. null in lists, while "
        "something blocks it, and once it is dispatched."
    )
    eta_seconds: float | None = Field(
        description="Estimated seconds until it has finished, from what was rendered lately. null in lists, while "
        "something blocks it, while nothing was measured, and once it has finished."
    )
    cancel_requested: bool
    created_at: datetime
    available_at: datetime = Field(
        description="Not dispatched before then: its `not_before`, or the delay before the next attempt."
    )
    deadline: datetime | None = Field(description="A job that still waits then fails as `deadline_exceeded`.")
    dispatched_at: datetime | None
    claimed_at: datetime | None = Field(description="When a worker claimed it.")
    started_at: datetime | None = Field(description="When it started on the device.")
    finished_at: datetime | None

    @classmethod
    def of(cls, job: Job, storage: Storage, settings: Settings) -> Self:
        """The job as its tenant sees it, with fresh URLs."""
        dispatched, claimed, started = _times(job)
        progress = None
        if job.progress is not None:
            step, steps = job.progress.step, job.progress.steps
            progress = ProgressSchema(step=step, steps=steps, fraction=round(step / steps, 4) if steps else 0.0)
        return cls(
            id=job.id,
            state=job.state,
            task=job.spec.task,
            model=job.spec.model,
            priority=job.priority,
            progress=progress,
            outputs=[output_schema(job.id, output, storage, settings) for output in job.outputs],
            error=None if job.error is None else ErrorSchema(code=job.error.code, message=job.error.message),
            attempts=job.attempts,
            max_attempts=job.max_attempts,
            steps_resumed=job.steps_resumed,
            preemptions=job.preemptions,
            worker=job.worker,
            parameters=job.spec.request(),
            warnings=list(job.warnings),
            timings=TimingsSchema.of(job),
            custom_id=job.custom_id,
            metadata=job.metadata,
            webhook=job.webhook,
            retry_of=job.retry_of,
            batch_id=job.batch_id,
            depends_on=list(job.depends_on),
            dependents=job.dependents,
            recipe=job.recipe,
            numerics=ONE if ids.is_id(ids.BATCH, job.pin or "") else job.pin,
            waiting_reason=job.waiting_reason,
            position=job.position,
            eta_seconds=job.eta_seconds,
            cancel_requested=job.cancel_requested,
            created_at=job.created_at,
            available_at=job.available_at,
            deadline=job.deadline,
            dispatched_at=dispatched,
            claimed_at=claimed,
            started_at=started,
            finished_at=job.finished_at,
        )


def output_schema(job_id: str, output: Output, storage: Storage, settings: Settings) -> OutputSchema:
    """One output of a job, with a fresh URL."""
    name = f"{job_id}_{output.index}.{keys.extension(output.media_type)}"
    return OutputSchema(
        index=output.index,
        url=storage.presign_get(output.key, settings.presign_seconds, name),
        media_type=output.media_type,
        size=output.size,
        sha256=output.sha256,
        seed=output.seed,
        width=output.width,
        height=output.height,
        metadata=output.metadata,
    )


class JobPage(Schema):
    """Some of the tenant's jobs, newest first."""

    data: list[JobSchema]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


class FileSchema(Schema):
    """A stored input file."""

    id: str
    media_type: str = Field(description="As detected from the content.")
    size: int = Field(description="Bytes.")
    sha256: str
    width: int | None = Field(description="Pixels, as displayed; null for media without a size.")
    height: int | None = Field(description="Pixels, as displayed; null for media without a size.")
    metadata: MediaMetadata = Field(description="Properties of the content, such as `width` and `height`.")
    filename: str | None
    created_at: datetime

    @classmethod
    def of(cls, file: StoredFile) -> Self:
        """The file as its tenant sees it."""
        content = file.content
        return cls(
            id=file.id,
            media_type=content.media_type,
            size=content.size,
            sha256=content.sha256,
            width=content.width,
            height=content.height,
            metadata=content.metadata,
            filename=file.filename,
            created_at=file.created_at,
        )


class ModelSchema(Schema):
    """A model of the registry."""

    id: str
    description: str
    tasks: list[TaskName]
    pipeline: str | None = Field(description="The class of diffusers; null where only the worker knows it.")
    defaults: dict[str, Any] = Field(description="What a job gets that leaves these open.")
    limits: ModelLimits
    vocabulary: dict[str, list[str]] = Field(description="The words of its vocabulary, if it is limited.")
    example_prompts: list[str]
    loras: list[str] = Field(description="The names that `loras` may contain.")
    loaded_on: list[str] = Field(description="Workers that have it in memory.")
    runs_alone: str | None = Field(
        description="Why its jobs do not share forwards; null if they do, or if that is not known yet."
    )
    state: ModelState = Field(
        description="`ready`: jobs may name it. `checking`: a worker has still to try it. `failed`: `report` says why. "
        "`removed`: accepted jobs still end with it."
    )
    report: dict[str, Any] = Field(description="What its check on a worker found; empty for the models file's.")

    @classmethod
    def of(
        cls,
        model: Model,
        loaded_on: list[str],
        runs_alone: str | None = None,
        *,
        state: ModelState = ModelState.READY,
        report: Mapping[str, Any] = MappingProxyType({}),
    ) -> Self:
        """The registry's entry without where it comes from."""
        return cls(
            id=model.id,
            description=model.description,
            tasks=list(model.tasks),
            pipeline=model.pipeline,
            defaults=model.defaults,
            limits=model.limits,
            vocabulary={kind: list(words) for kind, words in model.vocabulary.items()},
            example_prompts=list(model.example_prompts),
            loras=[lora.name for lora in model.loras],
            loaded_on=loaded_on,
            runs_alone=runs_alone,
            state=state,
            report=dict(report),
        )


class ModelDetailsSchema(ModelSchema):
    """A model, and what it takes."""

    schemas: dict[str, dict[str, Any]] = Field(
        description="By task, the JSON Schema of its requests: parameters, inputs, schedulers, limits and defaults."
    )

    @classmethod
    def of_details(
        cls,
        model: Model,
        loaded_on: list[str],
        runs_alone: str | None = None,
        *,
        state: ModelState = ModelState.READY,
        report: Mapping[str, Any] = MappingProxyType({}),
    ) -> Self:
        """The registry's entry with the schemas of its tasks."""
        schemas = {task: task_schema(model, task) for task in model.tasks}
        listed = ModelSchema.of(model, loaded_on, runs_alone, state=state, report=report)
        return cls(**dict(listed), schemas=schemas)


class ModelList(Schema):
    """All models, in the registry's order: the first that does a task is its default."""

    data: list[ModelSchema]


class DeviceSchema(Schema):
    """The accelerator that a worker owns."""

    kind: str = Field(description="`cuda`, `mps` or `cpu`.")
    index: str
    name: str = Field(description="The maker's name.")
    memory_bytes: int
    dtype: str


class LoadedSchema(Schema):
    """A model in a worker's memory."""

    model: str
    bytes: int = Field(description="Bytes of its weights.")
    runs_alone: str | None = Field(description="Why its jobs do not share forwards, if a worker found a reason.")


class NumericsSchema(Schema):
    """What a worker's exact outputs depend on besides their recipes: workers of one class give the same bytes."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: str = Field(alias="class", description="A short name of the facts: the same facts, the same name.")
    facts: dict[str, str] = Field(description="What decides the bits: device, threads, libraries, results of probes.")

    @classmethod
    def of(cls, numerics: Numerics) -> Self:
        """The class with its facts."""
        return cls.model_validate({"class": numerics.name, "facts": dict(numerics.facts)})


class NumericsWorkersSchema(NumericsSchema):
    """A numerics class and who has it."""

    workers: list[str] = Field(description="The online workers of this class.")

    @classmethod
    def of(cls, known: KnownNumerics) -> Self:  # type: ignore[override]
        """The class with its facts and workers."""
        numerics = known.numerics
        return cls.model_validate(
            {"class": numerics.name, "facts": dict(numerics.facts), "workers": list(known.workers)}
        )


class NumericsList(Schema):
    """All numerics classes that a worker ever had, oldest first."""

    data: list[NumericsWorkersSchema]


class WorkerSchema(Schema):
    """One process on one device."""

    name: str
    state: WorkerState
    device: DeviceSchema
    slots: int = Field(description="Jobs that its device renders at once.")
    prefetch: int = Field(description="Jobs that may wait at the worker.")
    held_jobs: int = Field(description="Jobs dispatched to it or running on it.")
    models: list[str] = Field(description="Models in its memory.")
    loaded: list[LoadedSchema] = Field(description="Details of the models in its memory.")
    tags: list[str]
    versions: dict[str, str]
    numerics: NumericsSchema | None = Field(description="What its bits depend on; null: not known.")
    started_at: datetime
    heartbeat_at: datetime
    drained_reason: str | None = Field(description="Why it gets no jobs until it is resumed; null: it was not drained.")
    stopping: bool = Field(description="Whether its process was asked to end and still runs.")

    @classmethod
    def of(cls, worker: Worker) -> Self:
        """The worker without what only its host cares for."""
        device = worker.info.device
        return cls(
            name=worker.info.name,
            state=worker.state,
            device=DeviceSchema(
                kind=device.kind,
                index=device.index,
                name=device.name,
                memory_bytes=device.memory_bytes,
                dtype=device.dtype,
            ),
            slots=worker.info.slots,
            prefetch=worker.info.prefetch,
            held_jobs=worker.held_jobs,
            models=list(worker.models),
            loaded=[LoadedSchema(model=one.model, bytes=one.bytes, runs_alone=one.runs_alone) for one in worker.loaded],
            tags=list(worker.info.tags),
            versions=worker.info.versions,
            numerics=None if worker.info.numerics is None else NumericsSchema.of(worker.info.numerics),
            started_at=worker.started_at,
            heartbeat_at=worker.heartbeat_at,
            drained_reason=worker.drained_reason,
            stopping=worker.stopping,
        )


class WorkerList(Schema):
    """All workers that ever joined, by name."""

    data: list[WorkerSchema]


class KeySchema(Schema):
    """An API key without its secret."""

    id: str
    tenant_id: str = Field(description="Whose key it is.")
    name: str
    scopes: list[Scope]
    created_at: datetime
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: Key) -> Self:
        """The key as an administrator sees it."""
        return cls(
            id=key.id,
            tenant_id=key.tenant_id,
            name=key.name,
            scopes=sorted(key.scopes),
            created_at=key.created_at,
            revoked_at=key.revoked_at,
        )


class NewKeySchema(KeySchema):
    """A new API key."""

    key: str = Field(description="The key's text. It is shown only here.")


class KeyList(Schema):
    """The tenant's keys, newest first."""

    data: list[KeySchema]
