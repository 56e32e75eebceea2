"""What the API takes and answers about batches."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    create_model,
)

from farm.api import problems
from farm.api.patch import Patch
from farm.api.schemas import Schema
from farm.domain.batch import Batch, BatchContents, BatchState, Estimate, OnError, SeedPlan
from farm.domain.numerics import CLASS_PATTERN, ONE
from farm.domain.parameters import PARAMETERS, Parameter, ParameterKind, from_text
from farm.domain.states import Priority
from farm.fields import Metadata, NoNul, Storable
from farm.services import validation

MAX_JOBS: Final = 1_000  #: in one JSON list; more go as JSON lines or CSV
MAX_VALUES: Final = 10_000  #: in one list of a sweep

Name = Annotated[str, StringConstraints(min_length=1, max_length=200), Storable, NoNul]
WebhookUrl = Annotated[str, StringConstraints(max_length=2_000), Storable, NoNul]
Reference = Annotated[str, StringConstraints(min_length=1, max_length=2_000), Storable, NoNul]


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


BatchNumerics = Annotated[str, StringConstraints(pattern=rf"^({ONE}|{CLASS_PATTERN[1:-1]})$")]
_NUMERICS: Final = (
    "A numerics class (`GET /v1/numerics`) for the jobs that name none; or `one`: all jobs are rendered in the class "
    "of the worker that gets the first, so that exact jobs of the whole batch compare bit by bit."
)


class BatchQueryBase(_Input):
    """How to submit a batch. `BatchQuery` adds the parameters that its jobs may leave out."""

    name: Name | None = Field(None, description="Your own name for the batch.")
    on_error: OnError = Field(
        OnError.STOP,
        description="`stop`: one invalid line rejects the whole batch. `skip`: the valid lines are submitted.",
    )
    dry_run: bool = Field(False, description="Check, count and estimate; store nothing.")
    webhook: WebhookUrl | None = Field(None, description="Notified of the batch's milestones and its end.")
    webhook_jobs: bool = Field(False, description="Whether `webhook` is also notified when each job is finished.")

    numerics: BatchNumerics | None = Field(None, description=_NUMERICS)

    def defaults(self) -> dict[str, Any]:
        """The parameters that jobs may leave out, as in the JSON of a job's request."""
        of_jobs = {"webhook"} if self.webhook_jobs else set()
        if self.numerics != ONE:
            of_jobs.add("numerics")
        own = set(BatchQueryBase.model_fields) - of_jobs
        given = self.model_dump(mode="json", exclude=own, exclude_none=True)
        texts = {name: from_text(name, text) for name, text in given.items() if _is_text(name)}
        return {"priority": Priority.BULK.value} | given | texts


#: Parameters that a query cannot set for all jobs of a batch, and why.
NOT_IN_QUERY: Final = {
    "custom_id": "two jobs of a batch cannot have the same",
    "metadata": "a query has no objects; send a JSON body with `defaults`",
}


#: What a parameter means as a default of a batch, where that differs.
_DESCRIPTIONS: Final = {"priority": "`bulk` if absent: after the jobs of all higher priorities."}


_TEXT_KINDS: Final = (ParameterKind.LORAS, ParameterKind.NUMBERS, ParameterKind.OBJECT, ParameterKind.INPUTS)
#: How a query has them.
_FORMS: Final = {
    ParameterKind.LORAS: "As `NAME` or `NAME:SCALE`, separated by commas.",
    ParameterKind.NUMBERS: "Several are separated by spaces.",
    ParameterKind.OBJECT: "As JSON.",
    ParameterKind.INPUTS: "As JSON.",
}


def _is_text(name: str) -> bool:
    """Whether a query has the parameter as text, because its value is not a single number, text or choice."""
    return name in PARAMETERS and (PARAMETERS[name].kind in _TEXT_KINDS or PARAMETERS[name].many)


def _text_of(parameter: Parameter) -> Any:
    """The type of a parameter that a query has as text."""
    adapter = TypeAdapter(parameter.field.rebuild_annotation())

    def check(text: str) -> str:
        try:
            adapter.validate_python(from_text(parameter.name, text))
        except ValidationError as error:
            problems = validation.of_body(error)
            raise ValueError(
                "; ".join(f"{one.field} {one.message}".removeprefix("body ") for one in problems)
            ) from None
        return text

    return Annotated[str, StringConstraints(min_length=1, max_length=2_000), AfterValidator(check)]


def _query_field(parameter: Parameter) -> Any:
    if parameter.kind in _TEXT_KINDS:
        return _text_of(parameter) | None, Field(None, description=f"{parameter.description} {_FORMS[parameter.kind]}")
    if parameter.kind is ParameterKind.INPUT:
        plain: Any = Reference
    elif parameter.kind is ParameterKind.CHOICE:  # of all tasks
        plain = Literal[parameter.choices]
    else:
        plain = parameter.field.rebuild_annotation()
    if parameter.many:  # several are separated by spaces
        return Reference | None, Field(None, description=f"{parameter.description} Several are separated by spaces.")
    read = BeforeValidator(partial(_read, parameter.name), json_schema_input_type=plain)
    alias = AliasChoices(*parameter.names) if parameter.aliases else None
    extra = parameter.field.json_schema_extra
    return Annotated[plain | None, read], Field(
        None,
        validation_alias=alias,
        description=_DESCRIPTIONS.get(parameter.name, parameter.description),
        json_schema_extra=extra,
    )


def _read(name: str, value: object) -> object:
    return from_text(name, value) if isinstance(value, str) else value


if TYPE_CHECKING:
    BatchQuery = BatchQueryBase
else:
    BatchQuery = create_model(
        "BatchQuery",
        __base__=BatchQueryBase,
        __doc__="How to submit a batch, and parameters that its jobs may leave out.",
        **{
            name: _query_field(parameter)
            for name, parameter in PARAMETERS.items()
            if name not in NOT_IN_QUERY and name not in BatchQueryBase.model_fields
        },
    )


class _BatchBody(_Input):
    name: Name | None = None
    metadata: Metadata = Field(default_factory=dict, description="The batch's metadata; each job has its own.")
    defaults: dict[str, Any] = Field(default_factory=dict, description="Parameters for jobs that do not set them.")
    on_error: OnError | None = None
    dry_run: bool | None = None
    webhook: WebhookUrl | None = Field(None, description="URL that receives the batch's progress events and its end.")
    webhook_jobs: bool | None = Field(None, description="Whether `webhook` also receives each job's end.")
    numerics: BatchNumerics | None = Field(None, description=_NUMERICS)


class JobListBody(_BatchBody):
    """A batch as a list of jobs."""

    jobs: list[dict[str, Any]] = Field(
        min_length=1, max_length=MAX_JOBS, description="Jobs with the parameters of `POST /v1/jobs`."
    )


class SweepBody(_BatchBody):
    """A batch as lists of parameters: zipped inside a group, multiplied across groups, times `repeats`."""

    sweep: list[
        Annotated[dict[str, Annotated[list[Any], Field(min_length=1, max_length=MAX_VALUES)]], Field(min_length=1)]
    ] = Field(min_length=1, max_length=20)
    repeats: int = Field(1, ge=1, le=1_000, description="Jobs per combination.")
    seeds: SeedPlan = Field(
        SeedPlan.CONSECUTIVE, description="`consecutive`: the same seeds for each combination. `drawn`: each its own."
    )


class RequestCounts(Schema):
    """Jobs by state."""

    total: int
    pending: int = Field(description="Jobs that wait for the outputs of other jobs.")
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
    progress: float = Field(description="Finished jobs, from 0 to 1.")
    jobs_per_second: float | None = Field(description="Measured since the first job finished; null until two have.")
    eta_seconds: float | None = Field(description="Until all have finished, at that speed; null while there is none.")
    cost: float = Field(description="Megapixel-steps, of all jobs.")
    suspicious_output: int = Field(description="Jobs that succeeded with an output of one colour, saturated or silent.")
    skipped: int = Field(description="Lines that were refused when it was submitted with `on_error=skip`.")
    retry_of: str | None = Field(description="The batch whose failed and canceled jobs it repeats.")
    same_as: str | None = Field(
        description="In the answer that submits it: a batch of the last 24 hours whose request was equal."
    )
    webhook: str | None = Field(description="URL that receives the batch's progress events and its end.")
    numerics: Literal["one"] | None = Field(description="`one`: all its jobs are rendered in one numerics class.")
    numerics_class: str | None = Field(description="That class: of the worker that got the first job; null before.")
    priority: Priority | None = Field(
        description="The priority of all its jobs, if it was changed; null: each job has its own."
    )
    propagating: bool = Field(
        description="Whether a pause, a resume, a new priority or a cancel is still being written to the jobs."
    )
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
                pending=counts.pending,
                queued=counts.queued,
                dispatched=counts.dispatched,
                running=counts.running,
                succeeded=counts.succeeded,
                failed=counts.failed,
                canceled=counts.canceled,
            ),
            progress=round(counts.progress, 4),
            jobs_per_second=None if speed is None else round(speed, 4),
            eta_seconds=None if eta is None else round(eta, 1),
            cost=batch.cost,
            suspicious_output=batch.suspicious,
            skipped=batch.skipped,
            retry_of=batch.retry_of,
            same_as=batch.same_as,
            webhook=batch.webhook,
            numerics=ONE if batch.one_numerics else None,
            numerics_class=batch.numerics,
            priority=batch.priority,
            propagating=batch.propagating,
            created_at=batch.created_at,
            finished_at=batch.finished_at,
            cancel_requested_at=batch.cancel_requested_at,
            paused_at=batch.paused_at,
        )


class BatchUpdate(Patch):
    """Changes of a batch; an absent field stays as it is."""

    name: Name | None = None
    metadata: Metadata | None = Field(None, description="The batch's new metadata; replaces the old one.")
    priority: Priority | None = Field(None, description="The new priority of all its unfinished jobs.")


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


class SecondsRangeSchema(Schema):
    """A time that is not known exactly."""

    low: float
    high: float


class DryRunSchema(Schema):
    """The result of a dry run of a batch."""

    dry_run: bool = True
    jobs: int = Field(description="Jobs that would be queued.")
    refused: int = Field(description="Lines that would be refused.")
    cost: float = Field(description="Megapixel-steps, of the jobs.")
    estimated_seconds: SecondsRangeSchema | None = Field(
        description="For these jobs alone, from the device time that the last ones took; null while there are none."
    )
    same_as: str | None = Field(description="A batch of the last 24 hours whose request was equal.")
    errors: list[problems.FieldError] = Field(description="The first errors.")

    @classmethod
    def of(cls, found: Estimate) -> Self:
        """What was found."""
        return cls(
            jobs=found.total,
            refused=found.refused,
            cost=found.cost,
            same_as=found.same_as,
            estimated_seconds=None
            if found.seconds is None
            else SecondsRangeSchema(low=round(found.seconds.low, 1), high=round(found.seconds.high, 1)),
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
