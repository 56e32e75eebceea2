"""Outputs: whether the storage has what the farm recorded, and bringing back what it has not."""

from __future__ import annotations

from typing import Annotated, Final, Self

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints

from farm.api.auth import Operator
from farm.api.dependencies import Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import Schema
from farm.domain import ids
from farm.fields import Moment
from farm.services import outputs as services
from farm.services.outputs import CheckedPage, Damage, DamagedOutput, Repair, RepairState

router: Final = APIRouter(prefix="/v1/outputs", tags=["outputs"], route_class=AuthenticatedRoute)

JobId = Annotated[str, StringConstraints(pattern=ids.pattern(ids.JOB))]


class DamagedOutputSchema(Schema):
    """An output whose object is not what was recorded."""

    job_id: str
    tenant_id: str
    index: int = Field(description="Its position among the job's outputs, from 0.")
    key: str = Field(description="The object's key in the bucket.")
    size: int = Field(description="Bytes, as recorded.")
    sha256: str = Field(description="As recorded.")
    damage: Damage = Field(description="`missing`, or another `size` or `sha256` than was recorded.")

    @classmethod
    def of(cls, one: DamagedOutput) -> Self:
        """The damaged output."""
        output = one.recorded.output
        return cls(
            job_id=one.recorded.job_id,
            tenant_id=one.recorded.tenant_id,
            index=output.index,
            key=output.key,
            size=output.size,
            sha256=output.sha256,
            damage=one.damage,
        )


class OutputCheckSchema(Schema):
    """What a check of one page of jobs found."""

    checked: int = Field(description="Outputs that were looked at.")
    damaged: list[DamagedOutputSchema]
    next_cursor: str | None = Field(description="`cursor` of the next page; null: this is the last one.")

    @classmethod
    def of(cls, page: CheckedPage) -> Self:
        """The page."""
        return cls(
            checked=page.outputs,
            damaged=[DamagedOutputSchema.of(one) for one in page.damaged],
            next_cursor=page.last_job,
        )


class RepairRequest(Schema):
    """Which jobs' outputs to bring back."""

    run: Annotated[str, StringConstraints(pattern="^[A-Za-z0-9-]{1,40}$")] = Field(
        description="A name for this repair. Ask again with the same one: each job is rendered once in a run."
    )
    job_ids: list[JobId] = Field(min_length=1, max_length=services.REPAIR_JOBS)


class RepairSchema(Schema):
    """The repair of one job."""

    job_id: str
    state: RepairState = Field(description="`rendering`: ask again. `repaired`: every output is there, byte for byte.")
    reason: str | None = Field(description="Why it is `impossible`.")

    @classmethod
    def of(cls, one: Repair) -> Self:
        """The repair."""
        return cls(job_id=one.job_id, state=one.state, reason=one.reason)


class RepairList(Schema):
    """Repairs, in the order of the request."""

    data: list[RepairSchema]


@router.get("/check", summary="Check outputs", responses=responses(*ALWAYS))
def check_outputs(
    context: Context,
    _: Operator,
    since: Annotated[Moment | None, Query(description="Only of jobs that ended then or later.")] = None,
    batch_id: Annotated[
        str | None, Query(pattern=ids.pattern(ids.BATCH), description="Only of this batch's jobs.")
    ] = None,
    deep: Annotated[bool, Query(description="Read each object and compare its SHA-256, not its size alone.")] = False,
    cursor: Annotated[
        str | None, Query(pattern=ids.pattern(ids.JOB), description="The page after this one's `next_cursor`.")
    ] = None,
) -> OutputCheckSchema:
    """Compare the outputs of jobs that succeeded, of all tenants, with the storage. Changes nothing."""
    return OutputCheckSchema.of(services.check(context, after=cursor, since=since, batch_id=batch_id, deep=deep))


@router.post("/repair", summary="Repair outputs", responses=responses(*ALWAYS, 413, 415))
def repair_outputs(context: Context, _: Operator, request: RepairRequest) -> RepairList:
    """Render jobs again and store what is missing, if it has the recorded SHA-256. Ask again while any is `rendering`.

    The renderings are jobs of the tenant `farm-repair`. Nothing about the old jobs changes: no state, event or usage.
    """
    return RepairList(data=[RepairSchema.of(one) for one in services.repair(context, request.run, request.job_ids)])
