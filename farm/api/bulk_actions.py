"""One action on many jobs: those that a request names, or all that match its filter."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.json_schema import SkipJsonSchema

from farm.api.auth import Submitter
from farm.api.dependencies import Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import Schema
from farm.domain import ids
from farm.domain.job import JobFilter, Selection
from farm.fields import NoNul, Storable
from farm.services import bulk_actions as services

router: Final = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=AuthenticatedRoute)

MOST_NAMED: Final = 10_000  #: jobs that one request names

JobId = Annotated[str, StringConstraints(pattern=ids.pattern(ids.JOB))]
Text = Annotated[str, StringConstraints(max_length=200), Storable, NoNul]


class SelectionRequest(BaseModel):
    """`ids` or `filter`: the jobs that are meant."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"oneOf": [{"required": ["ids"]}, {"required": ["filter"]}]},
    )

    ids: Annotated[list[JobId], Field(min_length=1, max_length=MOST_NAMED)] | SkipJsonSchema[None] = None
    filter: JobFilter | SkipJsonSchema[None] = Field(None, description="`{}` is every job of the tenant.")
    dry_run: bool = Field(False, strict=True, description="Count, and change nothing.")

    @model_validator(mode="before")
    @classmethod
    def _no_null(cls, given: Any) -> Any:
        for name in ("ids", "filter"):
            if isinstance(given, dict) and given.get(name, name) is None:
                raise ValueError(f"{name} must not be null; leave it out")
        return given

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either ids or filter")
        return self

    def selection(self) -> Selection:
        """What is meant."""
        if self.ids is not None:
            return Selection(job_ids=tuple(self.ids))
        return Selection(wanted=self.filter or JobFilter())


class CancelReport(Schema):
    """What came of stopping many jobs."""

    matched: int = Field(description="Selected jobs that had not finished.")
    canceled: int = Field(description="Those that waited; they are canceled.")
    stopping: int = Field(description="Those that ran: they stop at their next denoising step.")
    complete: bool = Field(description="false: some could not be reached in time; send the request again.")


class RetryReport(Schema):
    """What came of retrying many jobs."""

    matched: int = Field(description="Jobs that were meant, failed or were canceled, and were not retried since.")
    submitted: int = Field(description="New jobs; each names its old one in `retry_of`.")


@router.post("/cancel", summary="Cancel many jobs", responses=responses(*ALWAYS, 413, 415))
def cancel_jobs(context: Context, key: Submitter, request: SelectionRequest) -> CancelReport:
    """Stop all that is meant: at once what waits, at the next denoising step what runs.

    Finished jobs stay as they are, and ids that are not the tenant's are ignored.
    """
    selection = request.selection()
    matched = services.count_cancelable(context, key.tenant_id, selection)
    if request.dry_run or not matched:
        return CancelReport(matched=matched, canceled=0, stopping=0, complete=True)
    done = services.cancel(context, key.tenant_id, selection)
    return CancelReport(matched=matched, canceled=done.canceled, stopping=done.stopping, complete=done.complete)


@router.post("/retry", summary="Retry many jobs", responses=responses(*ALWAYS, 413, 415, 429))
def retry_jobs(context: Context, key: Submitter, request: SelectionRequest) -> RetryReport:
    """Submit again, as new jobs, all that is meant and failed or was canceled. All of them are queued, or none.

    A job that was retried already is passed over, so sending the request again makes nothing twice.
    """
    selection = request.selection()
    if request.dry_run:
        return RetryReport(matched=services.count_retryable(context, key.tenant_id, selection), submitted=0)
    submitted = services.retry(context, key.tenant_id, selection)
    return RetryReport(matched=submitted, submitted=submitted)
