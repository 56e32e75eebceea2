"""What the API takes and answers about batches."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from farm.api import problems
from farm.api.schemas import Schema
from farm.domain.batch import Batch, BatchContents, BatchState, Estimate, OnError, SeedPlan
from farm.domain.states import Priority
from farm.domain.tasks import (
    MAX_OUTPUTS,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    SIDE_MULTIPLE,
    Metadata,
    Moment,
    NoNul,
    OutputFormat,
    Scheduler,
    Storable,
    Task,
)
from farm.services import validation

MAX_JOBS: Final = 1_000  #: in one JSON list; more go as JSON lines or CSV
MAX_VALUES: Final = 10_000  #: in one list of a sweep

Text = Annotated[str, StringConstraints(max_length=10_000), Storable, NoNul]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), Storable, NoNul]
WebhookUrl = Annotated[str, StringConstraints(max_length=2_000), Storable, NoNul]
Reference = Annotated[str, StringConstraints(min_length=1, max_length=2_000), Storable, NoNul]
_Side = Annotated[int, Field(ge=SIDE_MULTIPLE, le=MAX_SIDE, multiple_of=SIDE_MULTIPLE)]


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class BatchQuery(_Input):
    """How to take a batch, and defaults for what its lines leave open."""

    name: Name | None = Field(None, description="Your own name for the batch.")
    on_error: OnError = Field(
        OnError.STOP, description="`stop`: a bad line refuses the whole. `skip`: the good lines are taken."
    )
    dry_run: bool = Field(False, description="Check, count and estimate; store nothing.")
    task: Task | None = None
    model: Annotated[str, StringConstraints(max_length=200), Storable, NoNul] | None = None
    prompt: Text | None = None
    negative_prompt: Text | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=50, allow_inf_nan=False)] | None = None
    strength: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    scheduler: Scheduler | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    num_images_per_prompt: Annotated[int, Field(ge=1, le=MAX_OUTPUTS)] | None = None
    width: _Side | None = None
    height: _Side | None = None
    exact: bool | None = None
    output_format: OutputFormat | None = None
    priority: Priority | None = Field(None, description="`bulk` if absent: after what people wait for.")
    not_before: Moment | None = Field(None, description="When the jobs may be handed to workers at the earliest.")
    deadline: Moment | None = Field(None, description="Jobs that still wait then fail as `deadline_exceeded`.")
    webhook: WebhookUrl | None = Field(None, description="Told of the batch's milestones and its end.")
    webhook_jobs: bool = Field(False, description="Whether `webhook` is also told when each job is over.")
    image: Reference | None = None
    mask_image: Reference | None = None
    depth_map: Reference | None = None

    def defaults(self) -> dict[str, Any]:
        """The parameters among them."""
        own = {"name", "on_error", "dry_run", "webhook_jobs"} | (set() if self.webhook_jobs else {"webhook"})
        return {"priority": Priority.BULK.value} | self.model_dump(mode="json", exclude=own, exclude_none=True)


class _BatchBody(_Input):
    name: Name | None = None
    metadata: Metadata = Field(default_factory=dict, description="Of the batch; each job has its own.")
    defaults: dict[str, Any] = Field(default_factory=dict, description="Parameters that the jobs leave open.")
    on_error: OnError | None = None
    dry_run: bool | None = None
    webhook: WebhookUrl | None = Field(None, description="Told of the batch's milestones and its end.")
    webhook_jobs: bool | None = Field(None, description="Whether `webhook` is also told when each job is over.")


class JobListBody(_BatchBody):
    """A batch as a list of jobs."""

    jobs: list[dict[str, Any]] = Field(
        min_length=1, max_length=MAX_JOBS, description="What `POST /v1/jobs` takes, each."
    )


class SweepBody(_BatchBody):
    """A batch as lists of parameters: zipped inside a group, multiplied across groups, times `repeats`."""

    sweep: list[
        Annotated[dict[str, Annotated[list[Any], Field(min_length=1, max_length=MAX_VALUES)]], Field(min_length=1)]
    ] = Field(min_length=1, max_length=20)
    repeats: int = Field(1, ge=1, le=1_000, description="Jobs per combination.")
    seeds: SeedPlan = Field(
        SeedPlan.CONSECUTIVE, description="`consecutive`: the same seeds for each combination. `random`: each its own."
    )


class RequestCounts(Schema):
    """Jobs by state."""

    total: int
    queued: int
    dispatched: int
    running: int
    succeeded: int
    failed: int
    canceled: int


class BatchSchema(Schema):
    """Many jobs submitted together."""

    id: str
    state: BatchState
    name: str | None
    metadata: dict[str, str]
    request_counts: RequestCounts
    progress: float = Field(description="Jobs that are over, from 0 to 1.")
    jobs_per_second: float | None = Field(description="Measured since the first job was over; null until two are.")
    eta_seconds: float | None = Field(description="Until all are over, at that speed; null while there is none.")
    cost: float = Field(description="Megapixel-steps, of all jobs.")
    skipped: int = Field(description="Lines that were refused when it was submitted with `on_error=skip`.")
    retry_of: str | None = Field(description="The batch whose failed and canceled jobs it repeats.")
    webhook: str | None = Field(description="Told of the batch's milestones and its end.")
    priority: Priority | None = Field(description="Of all its jobs, once it was changed; null: each has its own.")
    propagating: bool = Field(description="Whether jobs still follow a pause, its end, a new priority or a cancel.")
    created_at: datetime
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    paused_at: datetime | None

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """The batch as its tenant sees it."""
        counts = batch.counts
        speed, eta = batch.jobs_per_second, batch.eta_seconds
        return cls(
            id=batch.id,
            state=batch.state,
            name=batch.name,
            metadata=dict(batch.metadata),
            request_counts=RequestCounts(
                total=counts.total,
                queued=counts.queued,
                dispatched=counts.dispatched,
                running=counts.running,
                succeeded=counts.succeeded,
                failed=counts.failed,
                canceled=counts.canceled,
            ),
            progress=round(counts.finished / counts.total, 4),
            jobs_per_second=None if speed is None else round(speed, 4),
            eta_seconds=None if eta is None else round(eta, 1),
            cost=batch.cost,
            skipped=batch.skipped,
            retry_of=batch.retry_of,
            webhook=batch.webhook,
            priority=batch.priority,
            propagating=batch.propagating,
            created_at=batch.created_at,
            finished_at=batch.finished_at,
            cancel_requested_at=batch.cancel_requested_at,
            paused_at=batch.paused_at,
        )


class BatchUpdate(_Input):
    """What to change of a batch; what is left out or null stays as it is."""

    name: Name | None = None
    metadata: Metadata | None = Field(None, description="Of the batch; replaces what it has.")
    priority: Priority | None = Field(None, description="Of all its jobs that are not over.")


class DeletionSchema(Schema):
    """What deleting a batch removes, or would."""

    id: str
    dry_run: bool
    jobs: int
    outputs: int
    bytes: int = Field(description="Of the outputs.")

    @classmethod
    def of(cls, batch_id: str, found: BatchContents, *, dry_run: bool) -> Self:
        """What was found."""
        return cls(id=batch_id, dry_run=dry_run, jobs=found.jobs, outputs=found.outputs, bytes=found.bytes)


class BatchPage(Schema):
    """Some of the tenant's batches, newest first."""

    data: list[BatchSchema]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


class DryRunSchema(Schema):
    """What a batch would be."""

    dry_run: bool = True
    jobs: int = Field(description="That would be queued.")
    refused: int = Field(description="Lines that would not be taken.")
    cost: float = Field(description="Megapixel-steps, of the jobs.")
    estimated_seconds: float | None = Field(
        description="At the speed that the farm had lately, for these jobs alone; null while it has none."
    )
    errors: list[problems.FieldError] = Field(description="The first of what is wrong.")

    @classmethod
    def of(cls, found: Estimate) -> Self:
        """What was found."""
        return cls(
            jobs=found.total,
            refused=found.refused,
            cost=found.cost,
            estimated_seconds=None if found.seconds is None else round(found.seconds, 1),
            errors=[
                problems.FieldError(
                    field=validation.encodable(one.field),
                    value=validation.shown(one.value),
                    message=validation.encodable(one.message),
                    line=one.line,
                )
                for one in found.problems
            ],
        )
